"""How Sphinx makes the pages of the course: `make book`. Nothing is executed, the pages show the committed outputs.

Sphinx reads the whole repository (`-c notebooks .`). So a link in a lesson leads to a page, whether to another lesson,
to a README, or to a file of source code. Other files that are linked are copied beside the pages.
"""
import json
import re
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.parsers import Parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("*.md", "notebooks/*.md", "notebooks/*.ipynb", "benchmarks/*.md", "benchmarks/results/*.md", "data/*.md",
         "recipes/*.md", "recipes/*/*.md", "notebooks/assignments/*")
CODE = {".py": "python", ".toml": "toml"}  # files that are pages if a page links to them
MATHJAX = Path(find_spec("mathjax").submodule_search_locations[0], "static", "mathjax", "es5", "tex-svg-full.js")
WIDGET = "application/vnd.jupyter.widget-view+json"
CONTROL = ('<p class="control">A running lesson has a control here, which redraws the picture above. '
           'Open the lesson with <code>make lab</code> to use it.</p>')


def linked_code() -> set[str]:
    """The files of source code that a page links to."""
    links = ((page, link) for pattern in PAGES for page in ROOT.glob(pattern)
             for link in re.findall(r"\]\(([^)#:]+\.(?:py|toml))\b", page.read_text(encoding="utf-8")))
    return {(page.parent / link).resolve().relative_to(ROOT).as_posix() for page, link in links}


# ---------------------------------------------------------------- settings of Sphinx

project = "fsmerge_lite"
extensions = ["myst_nb", "sphinx.ext.mathjax"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"} | dict.fromkeys(CODE, "code")
root_doc = "notebooks/index"
include_patterns = [*PAGES, *linked_code()]
exclude_patterns = [".*", "**/.*", "runs", "build", "shared"]
highlight_language = "none"  # of a block that names none

nb_execution_mode = "off"
nb_merge_streams = True
nb_output_stderr = "error"
nb_ipywidgets_js = {}  # nothing is fetched from the network, nor are formulas
mathjax_path = MATHJAX.name
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4

html_title = "Merging transformers with FS-Merge"
html_theme = "sphinx_book_theme"
html_theme_options = {"show_toc_level": 2, "use_fullscreen_button": False, "navbar_persistent": []}
html_static_path = ["book.css", str(MATHJAX)]
html_css_files = ["book.css"]
html_show_copyright = False


# ---------------------------------------------------------------- what Sphinx does besides

class Code(Parser):
    """A file of source code as a page."""

    supported = ("code",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """The name of the file as the title, its text below."""
        env = document.settings.env
        path = Path(env.doc2path(env.docname)).relative_to(ROOT)
        env.metadata[env.docname] |= {"orphan": True, "nosearch": True}
        page = nodes.section(ids=["source"])
        page += nodes.title(text=path.as_posix())
        page += nodes.literal_block(inputstring, inputstring, language=CODE[path.suffix])
        document += page


def prepare(app: Sphinx, docname: str, source: list[str]) -> None:
    """Give a record its name as a title. In a lesson, a control becomes a sentence, and a picture gets its words."""
    if docname.startswith("benchmarks/results/"):
        source[0] = f"# {Path(docname).name}\n\n{source[0]}"
    if Path(app.env.doc2path(docname)).suffix == ".ipynb":
        notebook = json.loads(source[0])
        notebook["metadata"].pop("widgets", None)  # the state of the controls
        for cell in notebook["cells"]:
            for output in cell.get("outputs", []):
                if WIDGET in output.get("data", {}):
                    output["data"] = {"text/html": CONTROL}
                if words := output.get("metadata", {}).get("image/png", {}).get("alt"):
                    cell["metadata"]["mystnb"] = {"image": {"alt": words}}
        source[0] = json.dumps(notebook)


def find_folders(app: Sphinx, doctree: nodes.document) -> None:
    """A link to a folder leads to its README, or to that of the folder around it."""
    for link in doctree.findall(pending_xref):
        folder = (ROOT / link["refdoc"]).parent / link["reftarget"]
        if link.get("reftype") == "myst" and folder.is_dir():
            around = [folder.resolve(), *folder.resolve().parents]
            home = next(place for place in around if (place / "README.md").exists())
            link["refdomain"], link["reftargetid"] = "doc", None
            link["reftarget"] = (home / "README").relative_to(ROOT).as_posix()


def write_front_page(app: Sphinx, error: Exception | None) -> None:
    """The folder of the pages opens at the start page."""
    start = f"{root_doc}.html"
    page = f'<!doctype html><meta http-equiv="refresh" content="0; url={start}"><a href="{start}">Start</a>\n'
    (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Tell Sphinx of all this."""
    app.add_source_parser(Code)
    app.connect("source-read", prepare)
    app.connect("doctree-read", find_folders)
    app.connect("build-finished", write_front_page)
