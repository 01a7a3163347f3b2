"""Settings of the site: Sphinx, myst-nb and sphinx-book-theme, nothing that is fetched when a page is opened."""

import re
from configparser import ConfigParser
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

ROOT = Path(__file__).resolve().parents[1]
settings = ConfigParser(delimiters=["="])
settings.read(ROOT / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]

project, author, version = settings["lib_name"], settings["author"], settings["version"]
project_copyright = settings["copyright"]
language = "en"

extensions = ["myst_nb"]
nitpicky = True
suppress_warnings = ["myst.header"]  # a notebook may go from its title to a third-level heading
nb_execution_mode = "off"
highlight_language = "none"  # of blocks that name no language; the notebooks' cells do
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3

html_theme = "sphinx_book_theme"
html_title = project
html_math_renderer = "mathml"
html_copy_source = False
html_theme_options = {
    "home_page_in_toc": False,
    "show_toc_level": 2,
    "collapse_navbar": True,  # all of the side bar on every page takes as long to write as everything else
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the search stands in the side bar already
}


def mathml(tex, **how):
    """MathML of an equation; docutils wants to know which of a pair of brackets `\\Big` enlarges."""
    return tex2mathml(re.sub(r"\\([Bb]igg?)([()])", lambda b: rf"\{b[1]}{'lr'[b[2] == ')']}{b[2]}", tex), **how)


def _inline(self, node):
    self.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def _display(self, node):
    self.body.append(f"<p>{mathml(node.astext(), as_block=True)}</p>")
    raise nodes.SkipNode


def _note_functions(app, doctree):
    """Enter what the pages of functions list into the site's inventory, so that other sites can link to it."""
    if not app.env.docname.startswith("docs/functions/"):
        return
    domain, module = app.env.get_domain("py"), ""
    for section in doctree.findall(nodes.section):
        title, name = section[0].astext(), section["ids"][0]
        if isinstance(section.parent.parent, nodes.document):  # a module, below the page's title
            module = f"happywhale_nb.{title}"
        elif module:
            parts = title.split(".")
            kind = "method" if len(parts) > 1 else "class" if title[:1].isupper() else "function"
            domain.note_object(f"{module}.{title}", kind, name, location=section)


def setup(app):
    """Equations become MathML, which browsers draw themselves: MathJax would come from a server."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    app.connect("doctree-read", _note_functions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
