# make tour, make test: the two commands. Each sets .venv up if it is missing or stale.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
JOBS ?= 2

.PHONY: help tour test lint lab notebooks book assignments grade wheel-test oldest clean
help:
	@echo "make tour        the whole algorithm on shipped models (minutes), report in runs/tour"
	@echo "make test        all tests, notebooks included"
	@echo "make lab         JupyterLab on the notebooks"
	@echo "make notebooks   run all notebooks again, in place"
	@echo "make book        the lessons as static pages in runs/book, from their committed outputs"
	@echo "make assignments the assignments of a class in runs/assignments: NUMBER=2026 is the class"
	@echo "make grade       hand in solutions and wrong answers to all assignments, grade them, print the points"
	@echo "make wheel-test  build the wheel, install it alone in an empty environment, use it there"
	@echo "make oldest      the tests of the library with the oldest versions that pyproject.toml admits"
	@echo "make clean       remove environments, runs and caches"

# $(call environment,FOLDER,CONSTRAINTS,WHAT TO INSTALL)
define environment
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --allow-existing --python $(PYTHON) $(1) && \
	  uv pip install --python $(1)/bin/python -c $(2) $(3); \
	else \
	  $(PYTHON) -m venv $(1) && \
	  $(1)/bin/python -m pip install --quiet --disable-pip-version-check -c $(2) $(3); \
	fi
endef

$(READY): pyproject.toml constraints.txt
	$(call environment,.venv,constraints.txt,-e '.[dev]')
	@touch $@

tour: $(READY)
	$(BIN)/python -m fsmerge_lite tour

test notebooks oldest: export FSMERGE_QUIET = 1

# One torch thread a worker: two workers on two cores finish sooner than one on both.
test: $(READY) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadscope --durations=8 tests \
	  $(if $(NOTEBOOKS),--nbval --nbval-current-env --nbval-cell-timeout 300 \
	  --nbval-sanitize-with tests/notebooks/sanitize.cfg --ignore=notebooks/assignments notebooks)

lint: $(READY)
	$(BIN)/ruff check .

lab: $(READY)
	$(BIN)/jupyter lab notebooks

notebooks: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace $(NOTEBOOKS) \
	  --ExecutePreprocessor.record_timing=False --ExecutePreprocessor.store_widget_state=False \
	  --ExecutePreprocessor.timeout=300

# A warning, such as a link that leads nowhere, is an error. Nothing is executed.
book: $(READY)
	@rm -rf runs/book
	$(BIN)/python -m sphinx -W --keep-going -q -E -c notebooks -d runs/.book . runs/book
	@echo "the start page is runs/book/index.html"

assignments: $(READY)
	$(BIN)/python recipes/assignments/make.py $(if $(NUMBER),--number $(NUMBER)) \
	  $(if $(REQUIREMENTS),--requirements $(REQUIREMENTS))

grade: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python recipes/assignments/grade.py --jobs $(JOBS) $(if $(NUMBER),--number $(NUMBER))

# Away from the checkout, in an empty folder; -I keeps Python from looking anywhere but in the environment.
wheel-test: $(READY)
	rm -rf runs/wheel && mkdir -p runs/wheel/empty
	$(BIN)/python -m build --wheel --outdir runs/wheel . >runs/wheel/build.log || (cat runs/wheel/build.log; exit 1)
	$(call environment,runs/wheel/env,constraints.txt,"$$(ls runs/wheel/*.whl)[bench]")
	cd runs/wheel/empty && ../env/bin/python -I "$(CURDIR)/tests/wheel.py" "$(CURDIR)/README.md"

oldest:
	$(PYTHON) tests/oldest.py >.oldest.txt
	$(call environment,.venv-oldest,.oldest.txt,-e '.[bench]' pytest hypothesis pytest-xdist)
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n $(JOBS) tests/method tests/compare tests/tasks

clean:
	rm -rf .venv .venv-oldest .oldest.txt build runs .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
