# make tour, make test: the two commands. Each sets .venv up if it is missing or stale.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
JOBS ?= 2

.PHONY: help tour test lint lab notebooks clean
help:
	@echo "make tour       the whole algorithm on shipped models (minutes), report in runs/tour"
	@echo "make test       all tests, notebooks included"
	@echo "make lab        JupyterLab on the notebooks"
	@echo "make notebooks  run all notebooks again, in place"
	@echo "make clean      remove .venv, runs and caches"

$(READY): pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --allow-existing --python $(PYTHON) .venv && \
	  uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
	  $(PYTHON) -m venv .venv && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

tour: $(READY)
	$(BIN)/python -m fsmerge_lite tour

test notebooks: export FSMERGE_QUIET = 1

# One torch thread a worker: two workers on two cores finish sooner than one on both.
test: $(READY) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadscope --durations=8 tests \
	  $(if $(NOTEBOOKS),--nbval --nbval-current-env --nbval-cell-timeout 300 \
	  --nbval-sanitize-with tests/notebooks/sanitize.cfg notebooks)

lint: $(READY)
	$(BIN)/ruff check .

lab: $(READY)
	$(BIN)/jupyter lab notebooks

notebooks: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace $(NOTEBOOKS) \
	  --ExecutePreprocessor.record_timing=False --ExecutePreprocessor.timeout=300

clean:
	rm -rf .venv runs .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
