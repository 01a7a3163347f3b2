"""Memory that large photographs took is given back."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

SCRIPT = """
import json, re, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from happywhale_nb.catalogue.uploads import check_photo
from happywhale_nb.server.tidying import keep_little

def megabytes():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

data = Path(sys.argv[1]).read_bytes()
done = keep_little() if sys.argv[2] == "1" else None
before = megabytes()
with ThreadPoolExecutor(4) as threads:
    list(threads.map(lambda _: check_photo(data, "large.png"), range(4)))
    print(json.dumps([done, before, megabytes()]))
"""


def grown(file, returning):
    script = [sys.executable, "-c", SCRIPT, str(file), str(int(returning))]
    done, before, after = json.loads(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    return done, after - before


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A photograph of 40 million pixels, 160 MB once decoded."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the memory of a process is read from /proc")
    file, pixels = tmp_path_factory.mktemp("large") / "large.png", np.zeros((5000, 8000, 3), np.uint8)
    pixels[::50] = 200
    Image.fromarray(pixels).save(file, compress_level=1)
    return file


def test_memory_of_large_photographs_is_given_back(large):
    done, after = grown(large, True)
    if not done:
        pytest.skip("no glibc here")
    assert after < 40


@pytest.mark.soak
def test_memory_of_large_photographs_would_be_kept(large):
    _, kept = grown(large, False)
    print(f"{kept:.0f} MB kept")
    assert kept > 40
