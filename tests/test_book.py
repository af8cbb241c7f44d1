"""The pages of the course (`make book`): they build without a warning, lead somewhere, and hold what a reader needs."""
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LACKING = [name for name in ("sphinx", "myst_nb", "sphinx_book_theme", "mathjax") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"no {', '.join(LACKING)}: pip install 'fsmerge_lite[book]'")
OPTIONS = ["-W", "--keep-going", "-q", "-E", "-c", "notebooks"]


def build(root: Path, out: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sphinx", *OPTIONS, "-d", str(out / "cache"), ".", str(out / "pages")]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """The folder of the pages, built from the whole course. Takes about ten seconds of one core."""
    out = tmp_path_factory.mktemp("book")
    done = build(ROOT, out)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return out / "pages"


class Page(HTMLParser):
    """The links of a page, what it loads, its ids, its pictures' texts and how many answers it folds."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loaded, self.ids, self.alts, self.opened, self.folded = [], [], set(), [], 0, 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list) -> None:
        given = dict(attributes)
        self.ids.add(given.get("id"))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.loaded += [given[key] for key in ("src", "href") if given.get(key) and tag != "a"]
        if tag == "img":
            self.alts.append(given.get("alt") or "")
        self.folded += tag == "details"
        self.opened += tag == "details" and "open" in given


@pytest.fixture(scope="module")
def parsed(pages) -> dict[Path, Page]:
    return {path: Page(path) for path in pages.rglob("*.html") if "_static" not in path.parts}


def page_of(parsed: dict[Path, Page], pages: Path, lesson: Path) -> Page:
    return parsed[pages / "notebooks" / f"{lesson.stem}.html"]


def outputs(lesson: Path) -> list:
    return [output for cell in nbformat.read(lesson, as_version=4).cells for output in cell.get("outputs", [])]


def test_make_book_has_the_options_that_are_tested_here():
    assert f"-m sphinx {' '.join(OPTIONS)} " in (ROOT / "Makefile").read_text()


def test_every_page_is_there(parsed, pages):
    names = {path.relative_to(pages).as_posix() for path in parsed}
    beside = ["notebooks/symbols", "notebooks/troubleshooting", "README", "CONTRIBUTING", "CHANGELOG",
              "benchmarks/README", "benchmarks/results/lowdata", "data/README", "recipes/README", "fsmerge_lite/start"]
    assert {f"{name}.html" for name in [f"notebooks/{lesson.stem}" for lesson in LESSONS] + beside} <= names
    assert "notebooks/index.html" in (pages / "index.html").read_text()


def test_the_search_knows_the_lessons(pages):
    text = (pages / "searchindex.js").read_text()
    index = json.loads(text[text.index("(") + 1:text.rindex(")")])
    assert {f"notebooks/{lesson.stem}" for lesson in LESSONS} <= set(index["docnames"])
    place, found = index["docnames"].index("notebooks/01_why_averaging_fails"), index["titleterms"]["averag"]
    assert place in (found if isinstance(found, list) else [found])


def test_every_link_leads_somewhere(parsed):
    broken = []
    for path, page in parsed.items():
        for link in {*page.links, *page.loaded}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = target.is_file() and (target.suffix != ".html" or not parts.fragment
                                          or unquote(parts.fragment) in parsed[target].ids)
            if not there:
                broken.append(f"{path.name}: {link}")
    assert broken == []


def test_nothing_is_loaded_from_the_network(parsed):
    assert [link for page in parsed.values() for link in page.loaded if urlsplit(link).scheme.startswith("http")] == []


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda p: p.stem)
def test_answers_are_folded_and_pictures_have_words(lesson, parsed, pages):
    page, source = page_of(parsed, pages, lesson), lesson.read_text()
    assert page.opened == 0 and page.folded >= source.count("<details>") > 3
    assert not any(re.search(r"\.(png|jpe?g)$", alt) or len(alt) < 20 for alt in page.alts)
    assert len(page.alts) == sum("image/png" in output.get("data", {}) for output in outputs(lesson))
    text = (pages / "notebooks" / f"{lesson.stem}.html").read_text()
    assert "<summary>Solution</summary>" in text and 'class="math' in text and "tex-svg-full.js" in text


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda p: p.stem)
def test_a_control_is_a_sentence(lesson, pages):
    controls = sum("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs(lesson))
    text = (pages / "notebooks" / f"{lesson.stem}.html").read_text()
    assert text.count("A running lesson has a control") == controls and "VBox(" not in text


def test_the_start_page_lists_every_lesson_with_its_title_and_minutes():
    text = (ROOT / "notebooks" / "index.md").read_text()
    rows = re.findall(r"^\| \[(.*?)\]\((.+?)\.ipynb\) \|.*\| (\d+) \|$", text, re.M)
    for lesson, row in zip(LESSONS, rows, strict=True):
        words = "\n".join(cell.source for cell in nbformat.read(lesson, as_version=4).cells)
        title = re.match("# (.*)", words).group(1)
        assert row == (title, lesson.stem, re.search(r"\*\*Time:\*\* (\d+) minutes", words).group(1))


def test_a_link_that_leads_nowhere_is_an_error(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for name in ("conf.py", "book.css"):
        shutil.copy(ROOT / "notebooks" / name, tmp_path / "notebooks")
    (tmp_path / "notebooks" / "index.md").write_text("# Title\n\n[gone](gone.md)\n")
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode != 0 and "gone.md" in done.stderr
