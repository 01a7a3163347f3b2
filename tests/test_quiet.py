"""TensorFlow starts without a word, and its errors are read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from happywhale_nb.core.quiet import is_greeting

GREETINGS = """WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795935937.585011   13836 port.cc:153] oneDNN custom operations are on. You may see slightly different
I0000 00:00:1795935937.585339   13836 cudart_stub.cc:31] Could not find cuda drivers on your machine
2026-11-29 07:00:00.123: I tensorflow/core/platform/cpu_feature_guard.cc:210] This TensorFlow binary is optimized
To enable the following instructions: AVX2 AVX512F FMA, in other operations, rebuild TensorFlow.
E0000 00:00:1795935937.1 1 cuda_dnn.cc:8310] Unable to register cuDNN factory: Attempting to register factory
"""
ERRORS = """E0000 00:00:1795935945.151998   13836 gpu_device.cc:52] out of memory
2026-11-29 07:00:00.123: E tensorflow/core/framework/op_kernel.cc:1830] RESOURCE_EXHAUSTED
F0000 check failed
W0000 00:00:1795935945.151998 13836 cpu_allocator.cc:83] Allocation of 9999 exceeds 10% of free system memory
ImportError: DLL load failed
"""
FAKE = """import os
os.write(2, open({lines!r}, "rb").read())
class config:
    list_physical_devices = staticmethod(lambda kind: os.write(2, b"E0000 x.cc:1] failed call to cuInit: 303\\n"))
{end}
"""


def test_is_greeting_of_what_tensorflow_prints_whenever_it_starts():
    assert all(map(is_greeting, GREETINGS.splitlines()))
    assert not any(map(is_greeting, ERRORS.splitlines()))


@pytest.mark.parametrize("fails", [False, True])
def test_quiet_tensorflow_prints_what_is_no_greeting_also_if_the_import_fails(fails, tmp_path):
    (tmp_path / "lines").write_text(GREETINGS + ERRORS)
    (tmp_path / "tensorflow").mkdir()
    end = "raise ImportError('no library')" if fails else ""
    (tmp_path / "tensorflow" / "__init__.py").write_text(FAKE.format(lines=str(tmp_path / "lines"), end=end))
    code = "from happywhale_nb.core.quiet import quiet_tensorflow as q; q(); q(); import tensorflow; print('here')"
    place = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[1])])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | place)
    said = [line for line in done.stderr.splitlines(keepends=True) if "failed call to cuInit" not in line]
    assert "".join(said).startswith(ERRORS) and done.returncode == int(fails)
    assert ("no library" in done.stderr) == fails and ("here" in done.stdout) != fails
