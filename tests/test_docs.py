"""The site of `make docs`: every notebook has its place, every link its target, and a page asks nobody for anything."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
SHOWN = ("index", "nbs/06_knn", "nbs/lib/heads", "docs/howto/machines")


def toctrees(path):
    """The entries of a page's lists of pages, as paths from the root without their endings."""
    found = re.findall(r"^```\{toctree\}\n(.*?)^```$", path.read_text(), flags=re.M | re.S)
    return [line[1:] for block in found for line in block.splitlines() if line.startswith("/")]


def test_every_notebook_and_page_is_in_one_list_of_pages():
    entries = [entry for path in PAGES for entry in toctrees(path)]
    there = [p.relative_to(ROOT).with_suffix("").as_posix() for p in [*NOTEBOOKS, *PAGES]]
    landing = {"nbs/index", "docs/index"}
    assert sorted(entries) == sorted({*there, "docs/functions"} - landing)
    story = [p.relative_to(ROOT).with_suffix("").as_posix() for p in NOTEBOOKS if p.name[:2].isdigit()]
    assert toctrees(ROOT / "docs" / "index.md")[: len(story)] == story


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_links_of_pages_lead_to_files_of_the_checkout(path):
    links = re.findall(r"\]\(([^)#\s]+)\)", path.read_text())
    assert not [link for link in links if not (path.parent / link).is_file()]
    assert links or path.stem in {"index", "library"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, ROOT / "docs" / "stage.py", folder], check=True)
    return folder / "source"


def test_what_only_machines_read_is_left_out(source):
    for path in NOTEBOOKS:
        if path.name == "index.ipynb":
            continue
        cells = json.loads((source / path.relative_to(ROOT)).read_text())["cells"]
        assert not [c for c in cells if re.search(r"^(#\|? ?papermill_|#\| )", c["source"], re.M) or c["metadata"]]
        kept = sum(len(c["source"].splitlines()) for c in cells)
        lines = "".join("".join(c["source"]) + "\n" for c in json.loads(path.read_text())["cells"]).splitlines()
        assert kept >= len([line for line in lines if not line.startswith("#")]) * 0.95


def test_the_list_of_functions_has_every_module(source):
    text = (source / "docs" / "functions.md").read_text()
    modules = {p.stem for p in (ROOT / "happywhale_nb").glob("*.py") if not p.name.startswith("_")}
    assert set(re.findall(r"^## (\w+)$", text, re.M)) == modules
    assert "- `map_at_5(" in text and "- `KNNHead(" in text


@pytest.fixture(scope="module")
def site(source):
    """The whole site, warnings being errors."""
    missing = [name for name in ("sphinx", "myst_nb", "sphinx_book_theme") if not importlib.util.find_spec(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} cannot be imported: pip install 'happywhale_nb[docs]'")
    html = source.parent / "html"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", ROOT / "docs", source, html]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
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


def test_every_link_of_the_site_has_its_target_and_nothing_is_loaded_from_elsewhere(site):
    pages = {path: Links(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    assert len(pages) > len(NOTEBOOKS) + len(PAGES) - 2
    lost = []
    for path, page in pages.items():
        assert not [url for url in page.loads if urlsplit(url).scheme or urlsplit(url).netloc]
        for url in page.links | page.loads:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in pages[target].places):
                lost.append((path.name, url))
    assert not lost


def test_equations_are_drawn_by_the_browser(site):
    for name in ("heads", "../04_gradcam"):
        text = (site / "nbs" / "lib" / f"{name}.html").read_text()
        assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in text
        assert "$$" not in text and "MathJax" not in text


PROBE = """<script>addEventListener("load", () => {
const asked = performance.getEntriesByType("resource").map(e => e.name).filter(n => !/^(file|data):/.test(n));
const broken = [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length;
const wide = document.documentElement.scrollWidth > innerWidth;
document.title = JSON.stringify({broken, asked, wide}); })</script></body>"""


@pytest.mark.parametrize("width", [1200, 400])
def test_a_browser_shows_pages_without_errors_or_requests(site, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: install the system's package")
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
