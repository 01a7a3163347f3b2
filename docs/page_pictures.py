"""Takes the pictures of the catalogue's page for the README and the site, with Chromium and the demo's drawn season."""

import io
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from PIL import Image, ImageChops

ROOT = Path(__file__).resolve().parents[1]
TALL, WIDE, PHONE = {"width": 1280, "height": 1180}, {"width": 1280, "height": 800}, {"width": 390, "height": 844}


def free_port():
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def served(folder):
    """The address of a server of the catalogue in `folder`; yields when it answers."""
    port = free_port()
    program = Path(sysconfig.get_path("scripts")) / "happywhale"
    command = [program, "serve", folder, "--port", str(port), "--no-browser"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"LOGNAME": "demo"})
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urlopen(f"{address}/api/status", timeout=5).close()
                break
            except (URLError, OSError):
                if server.poll() is not None:
                    sys.exit("the server of the demo's catalogue has stopped")
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def same_picture(one, other):
    """Whether two pictures look the same: browsers do not draw every pixel alike twice."""
    if one.size != other.size:
        return False
    small = [picture.convert("RGB").resize((160, 100)) for picture in (one, other)]
    return max(high for _, high in ImageChops.difference(*small).getextrema()) < 8


def kept(data, path):
    """Store a screenshot as a small JPEG, unless the stored one looks the same."""
    taken = Image.open(io.BytesIO(data)).convert("RGB")
    if not path.is_file() or not same_picture(taken, Image.open(path)):
        taken.save(path, "JPEG", quality=80, optimize=True)


def page_pictures(folder):
    """Write `page.jpg`, `page_queue.jpg`, `page_phone.jpg` … into `folder`.

    Raises:
        SystemExit: if Chromium is missing.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        sys.exit("the page's pictures need Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    from happywhale_nb.catalogue.build import demo_catalogue

    with tempfile.TemporaryDirectory() as home:
        catalogue, embedder = demo_catalogue(Path(home) / "demo")
        embedder.close()
        catalogue.close()
        with served(Path(home) / "demo") as address, sync_playwright() as playwright:
            opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            for name, size, view, keys in VIEWS:
                page = opened.new_page(viewport=size, reduced_motion="reduce")
                page.goto(address + view)
                page.wait_for_load_state("networkidle")
                for key in keys:
                    page.keyboard.press(key)
                if "h" in keys:
                    page.locator(".heatmap").nth(1).wait_for()
                page.wait_for_load_state("networkidle")
                page.wait_for_function(SHOWN)
                page.wait_for_timeout(1000)
                kept(page.screenshot(), Path(folder) / f"{name}.jpg")
                page.close()
            opened.close()


SHOWN = """() => [...document.images].filter((image) => {
  const place = image.getBoundingClientRect();
  return place.top < innerHeight && place.bottom > 0;
}).every((image) => image.complete && image.naturalWidth)"""  # all pictures in the window are loaded
VIEWS = [  # file, size, address, keys pressed
    ("page", TALL, "/#/encounter/82", ["1", "h"]),
    ("page_queue", WIDE, "/", []),
    ("page_individuals", WIDE, "/#/individuals", []),
    ("page_phone", PHONE, "/#/encounter/84", ["1"]),
]

if __name__ == "__main__":
    page_pictures(ROOT / "nbs" / "images")
