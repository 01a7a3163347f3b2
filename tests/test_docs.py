"""The site of `make docs`: every notebook has its place, every link its target, and a page asks nobody for anything.

Sources are looked at in `make test`; the site that Sphinx builds from them, in half a minute, in `make test-all`."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import FunctionType
from urllib.parse import unquote, urlsplit

import click
import pytest

from happywhale_nb.catalogue.example import ColourEmbedder
from happywhale_nb.cli.main import main
from happywhale_nb.networks.presets import MEASURED
from happywhale_nb.retrieval.conformal import CandidateSets
from happywhale_nb.retrieval.gallery import Gallery
from happywhale_nb.retrieval.knn import KNNHead
from happywhale_nb.retrieval.search import ExactIndex
from happywhale_nb.workflow.notebooks import read_parameters
from happywhale_nb.workflow.registry import command_stages
from happywhale_nb.workflow.runner import stage_notebook

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
built = pytest.mark.browser  # the site as a browser gets it
SHOWN = ("index", "nbs/06_knn", "nbs/lib/networks/heads", "docs/howto/machines")


def toctrees(path):
    """The entries of a page's lists of pages, as paths from the root without their endings."""
    found = re.findall(r"^```\{toctree\}\n(.*?)^```$", path.read_text(), flags=re.M | re.S)
    listed = re.findall(r"^- \[\w+\]\(\.\./(nbs/lib/\S+)\.ipynb\)$", path.read_text(), flags=re.M)
    return [line[1:] for block in found for line in block.splitlines() if line.startswith("/")] + listed


def test_toctrees_hold_every_notebook_and_page_once():
    entries = [entry for path in PAGES for entry in toctrees(path)]
    there = [p.relative_to(ROOT).with_suffix("").as_posix() for p in [*NOTEBOOKS, *PAGES]]
    landing = {"nbs/index", "docs/index"}
    assert sorted(entries) == sorted({*there, "docs/functions", "CONTRIBUTING", "SECURITY"} - landing)
    story = [p.relative_to(ROOT).with_suffix("").as_posix() for p in NOTEBOOKS if p.name[:2].isdigit()]
    listed = toctrees(ROOT / "docs" / "index.md")
    assert listed[listed.index(story[0]) :][: len(story)] == story


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_pages_link_to_files_of_the_checkout(path):
    links, folder = re.findall(r"\]\(([^)#\s]+)\)", path.read_text()), path.parent
    if path.name == "index.md":  # the site's first page has it after the README
        folder = ROOT
    assert not [link for link in links if not (folder / link).is_file()]
    assert links or path.stem == "index"


def test_figures_of_presets_name_what_the_runs_changed():
    rows = json.loads((ROOT / "docs" / "results" / "recognition.json").read_text())["results"]
    changed = {row["preset"]: row for row in rows if row.get("overrides") and row.get("preset") in MEASURED}
    shown = {name: row for name, row in changed.items() if f"{row['map5']:.3f}"[1:] in MEASURED[name]}
    assert "efficientnet_lite0_flukes" in shown
    page = (ROOT / "docs" / "howto" / "finetune.md").read_text(encoding="utf-8")
    for name, row in shown.items():
        assert row["overrides"] in MEASURED[name] and row["overrides"] in page


def test_page_on_detectors_names_the_crops_that_gain_beyond_chance():
    rows = json.loads((ROOT / "docs" / "results" / "detectors.json").read_text())["identification"]
    gains = {(row["encoder"], row["crops"]): row["gain over whole"] for row in rows}
    beyond = {key: gain for key, gain in gains.items() if gain["low"] > 0 and key[0] != "the demo's network"}
    assert beyond.keys() == {("efficientnet_lite0, untrained", "own, animals held out")}
    said = "it gains {gain:.3f}, {low:.4f} to {high:.4f}".format(**next(iter(beyond.values()))).replace("0.", ".")
    assert said in (ROOT / "docs" / "howto" / "detectors.md").read_text(encoding="utf-8")


def test_python_of_the_page_on_the_library_runs(tiny, capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "library.md").read_text(), flags=re.M | re.S)
    network = 'Embedder("efficientnet_lite0")'
    assert '"data/demo"' in code and network in code
    exec(
        code.replace('"data/demo"', repr(str(tiny))).replace(network, "ColourEmbedder()"),
        {"ColourEmbedder": ColourEmbedder},
    )
    assert 0 < float(capsys.readouterr().out.split()[0]) < 1


OWN = [p for p in NOTEBOOKS if p.parent.name != "cli"]  # those of the commands speak of old names, too
WRITTEN = [
    *OWN,
    *PAGES,
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "data" / "README.md",
]
COMMAND = re.compile(r"(?:`|^|\$ |&& |: )happywhale ([a-z][a-z_-]*)(?: ([a-z-]+))?([^`|&#;\n]*)", re.M)


def written(path):
    """What people read: the text of a page, the sources of a notebook's cells."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])


@pytest.mark.parametrize("path", WRITTEN, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_and_parameters_that_a_text_names_are_there(path):
    text = written(path)
    for name, second, rest in COMMAND.findall(text):
        inner = getattr(main.entries[name].load(name), "commands", None)
        assert inner is None or second in inner or not (second + rest).strip(' "'), (name, second, rest)
    stages = [read_parameters(stage_notebook(name)) for name in command_stages()]
    for line in text.splitlines():
        if not re.match(r"\W*kaggle ", line):
            for name in re.findall(r"-p ([a-z_0-9]+) ", line):
                assert any(name in parameters for parameters in stages), line


def shell_commands(text):
    """The commands of this project in a text's shell blocks, as lists of words; those with an ellipsis are left out."""
    for block in re.findall(r"^```(?:sh|bat)\n(.*?)^```$", text, flags=re.M | re.S):
        for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
            if line.startswith("happywhale ") and "…" not in line:
                words = shlex.split(line, comments=True)
                end = next((i for i, word in enumerate(words) if word in ("&&", "|", ";", ">", "<", "&")), len(words))
                yield words[1:end]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_of_a_text_have_the_options_that_it_gives_them(path):
    for words in shell_commands(written(path)):
        command, context = main, click.Context(main, info_name="happywhale")
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            name, words = words[0], words[1:]
            command = command.get_command(context, name)
            context = click.Context(command, parent=context, info_name=name)
        if "--help" not in words and not isinstance(command, click.Group):
            command.make_context(command.name, words, parent=context.parent)  # raises what a person would see


def test_shell_commands_are_found_and_a_wrong_option_is_refused():
    assert sum(1 for path in WRITTEN for _ in shell_commands(written(path))) > 100
    (words,) = shell_commands("```sh\nhappywhale serve --demo \\\n    --doom   # a comment\n```")
    assert words == ["serve", "--demo", "--doom"]
    with pytest.raises(click.UsageError, match="--doom"):
        main.get_command(click.Context(main), "serve").make_context("serve", words[1:])


def load(path):
    """A module from its file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What Sphinx is given."""
    folder = tmp_path_factory.mktemp("site")
    load(ROOT / "docs" / "stage.py").stage(ROOT, folder)
    return folder / "source"


def texts(source):
    """The Markdown of every page and notebook: `(path, text)`."""
    for path in sorted(source.rglob("*.md")):
        yield path, path.read_text()
    for path in sorted(source.rglob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        yield path, "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def test_stage_leaves_out_what_only_machines_read(source):
    for path in NOTEBOOKS:
        if path.name == "index.ipynb":
            continue
        cells = json.loads((source / path.relative_to(ROOT)).read_text())["cells"]
        assert not [c for c in cells if re.search(r"^(#\|? ?papermill_|#\| )", c["source"], re.M) or c["metadata"]]
        kept = sum(len(c["source"].splitlines()) for c in cells)
        lines = "".join("".join(c["source"]) + "\n" for c in json.loads(path.read_text())["cells"]).splitlines()
        assert kept >= len([line for line in lines if not line.startswith("#")]) * 0.95


def test_stage_lists_the_functions_of_every_module(source):
    text = "\n".join(path.read_text() for path in (source / "docs" / "functions").glob("*.md"))
    package = ROOT / "happywhale_nb"
    paths = [p.relative_to(package) for p in package.glob("*/**/*.py") if not p.name.startswith("_")]
    names = {".".join(p.with_suffix("").parts) for p in paths if "migrations" not in p.parts}
    assert set(re.findall(r"^## ([\w.]+)$", text, re.M)) == names
    assert "\ndef map_at_5(" in text and "\nclass KNNHead(" in text
    assert "\nclass Options:\n    tokens: bool" in text


@pytest.mark.parametrize("cls", [KNNHead, CandidateSets, Gallery, ExactIndex])
def test_stage_lists_every_public_method_of_a_class(source, cls):
    """Inherited ones too, whether their class is private, public, or in another module."""
    text = (source / "docs" / "functions" / "retrieval.md").read_text()
    listed = re.findall(rf"^#### {cls.__name__}\.(\w+)$", text, re.M)
    ours = [vars(base) for base in cls.__mro__ if base.__module__.startswith("happywhale_nb.")]
    kinds = FunctionType | classmethod | staticmethod | property
    names = {name for members in ours for name, value in members.items() if isinstance(value, kinds)}
    assert sorted(listed) == sorted(name for name in names if not name.startswith("_"))


def test_stage_lists_the_methods_of_the_knn_head(source):
    text = (source / "docs" / "functions" / "retrieval.md").read_text()
    for name in ("fit", "predict", "rank", "kneighbors"):
        assert f"\n#### KNNHead.{name}\n" in text
    rank = text.partition("#### KNNHead.rank\n")[2].partition("\n#")[0]
    assert "def rank(X: np.ndarray, n_ranked: int=5)" in rank
    assert "Inherited from `RankMixin`." in rank


def test_stage_keeps_every_target_that_a_page_links_to(source):
    count = 0
    for path, text in texts(source):
        links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'\bsrc="([^"]+)"', text)
        inside = [url for url in links if not urlsplit(url).scheme and not url.startswith("#")]
        lost = [url for url in inside if not (path.parent / unquote(urlsplit(url).path)).is_file()]
        assert not lost, f"{path.relative_to(source)}: not on the site: {lost}"
        count += len(inside)
    assert count > 100


def test_mathml_of_every_equation_can_be_made(source):
    plugin = pytest.importorskip("mdit_py_plugins.dollarmath", reason="needs pip install 'happywhale_nb[docs]'")
    markdown = pytest.importorskip("markdown_it").MarkdownIt().use(plugin.dollarmath_plugin)
    mathml, count = load(ROOT / "docs" / "conf.py").mathml, 0
    for path, text in texts(source):
        tokens = [inner for token in markdown.parse(text) for inner in (token, *(token.children or []))]
        for token in tokens:
            if token.type in ("math_inline", "math_block"):
                made = mathml(token.content, as_block=token.type == "math_block")
                assert made.startswith("<math") and "$" not in made, (path, token.content)
                count += 1
    assert count > 2


@pytest.fixture(scope="module")
def site(source):
    """The whole site, warnings being errors."""
    missing = [name for name in ("sphinx", "myst_nb", "sphinx_book_theme") if not importlib.util.find_spec(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} cannot be imported: pip install 'happywhale_nb[docs]'")
    html = source.parent / "html"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", ROOT / "docs", source, html]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return html


class Links(HTMLParser):
    """What a page links to, what it loads, and the places in it that can be linked to."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.places = set(), set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = {name: value for name, value in attributes if value}
        self.places.add(found.get("id"))
        self.links |= {found["href"]} if tag == "a" and "href" in found else set()
        self.loads |= {found[name] for name in ("src", "href") if tag != "a" and name in found}


@built
def test_site_has_the_target_of_every_link_and_loads_nothing_from_elsewhere(site):
    pages = {path: Links(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    assert len(pages) > len(NOTEBOOKS) + len(PAGES) - 2
    lost = []
    for path, page in pages.items():
        fetched = {url for url in page.loads if not url.startswith("data:image/")}  # outputs hold their pictures
        assert not [url for url in fetched if urlsplit(url).scheme or urlsplit(url).netloc]
        for url in page.links | fetched:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in pages[target].places):
                lost.append((path.name, url))
    assert not lost


@built
def test_site_has_its_equations_as_mathml(site):
    for name in ("networks/heads", "../04_gradcam"):
        text = (site / "nbs" / "lib" / f"{name}.html").read_text()
        assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in text
        assert "$$" not in text and "MathJax" not in text


PROBE = """<script>addEventListener("load", () => {
const asked = performance.getEntriesByType("resource").map(e => e.name).filter(n => !/^(file|data):/.test(n));
const broken = [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length;
const wide = document.documentElement.scrollWidth > innerWidth;
document.title = JSON.stringify({broken, asked, wide}); })</script></body>"""


@built
@pytest.mark.parametrize("width", [1200, 400])
def test_site_in_a_browser_shows_pages_without_errors_or_requests(site, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    how = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--enable-logging=stderr"]
    how += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    for name in SHOWN:
        page = site / f"{name}.html"
        probe = page.with_name(f"{page.stem}-probe-{width}.html")
        probe.write_text(page.read_text().replace("</body>", PROBE))
        done = subprocess.run([browser, *how, f"file://{probe}"], capture_output=True, text=True, timeout=120)
        seen = json.loads(done.stdout.partition("<title>")[2].partition("</title>")[0].replace("&quot;", '"'))
        assert seen == {"broken": 0, "asked": [], "wide": False}, name
        notes = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert not [line for line in notes if "[PST]" not in line and "theme mode" not in line], name
