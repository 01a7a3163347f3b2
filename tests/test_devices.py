"""What a network is computed on: the precision for each device, eight devices that train as one, and Keras on JAX.

Keras chooses JAX when it is imported, so one process of its own stands for it, with eight devices made of the CPU.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from standins import nvidia_smi

from happywhale_nb.core.errors import UserError
from happywhale_nb.core.hardware import nvidia_driver
from happywhale_nb.networks.devices import (
    Device,
    best_precision,
    device_line,
    first_line,
    hide_gpus_from_tensorflow,
    prepare,
    replicas,
)

HERE = Path(__file__).resolve().parent
ON_JAX = """
import json, sys, tempfile
import jax
jax.config.update("jax_num_cpu_devices", 8)
import keras, pytest

class Losses(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.found = []
    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()
    def on_train_batch_end(self, batch, logs=None):
        self.found.append(float(logs["loss"]))
    def should_stop(self, history): return False
    def finish(self): pass

def train_losses(devices):
    losses, config = Losses(), small(f"batch_size={16 // devices} dropout=0 learning_rate=.0002", epochs=2)
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingOptions(devices=devices, inside=True)
        fit(photographs(80), folder, config, callbacks=[lambda model: losses], options=options)
    return {"line": device_line(devices), "losses": losses.found}

if sys.argv[1] == "train":
    from happywhale_nb.networks.backbones import BACKBONES
    from happywhale_nb.networks.devices import device_line
    from happywhale_nb.networks.training import TrainingOptions
    from test_training import fit, photographs, small, two_layers
    BACKBONES["two_layers"] = two_layers
    print("TRAINED" + json.dumps([train_losses(devices) for devices in (1, 8)]), flush=True)
shown = ["-q", "-rA", "--tb=short", "--show-capture=no", "-p", "no:cacheprovider"]
chosen = "not neck and not configuration and (test_heads or gem2 or parts or growing_crops and True)"
sys.exit(pytest.main([*shown, "-k", chosen, *sys.argv[2:]]))
"""


@pytest.mark.parametrize(
    ("kind", "name", "precision"),
    [
        ("cpu", "CPU", "float32"),
        ("tpu", "TPU v5 lite", "mixed_bfloat16"),
        ("gpu", "NVIDIA A100-SXM4-40GB", "mixed_bfloat16"),
        ("gpu", "NVIDIA L4", "mixed_bfloat16"),
        ("gpu", "Tesla V100-SXM2-16GB", "mixed_float16"),
        ("gpu", "Tesla P100-PCIE-16GB", "mixed_float16"),
        ("gpu", "NVIDIA GeForce RTX 2080 Ti", "mixed_float16"),
    ],
)
def test_best_precision_of_a_device_is_what_it_computes_fast(kind, name, precision):
    assert best_precision(Device(kind, name)) == precision


def test_prepare_and_replicas_of_what_is_not_there_are_refused():
    with pytest.raises(UserError, match="precision='half': one of auto, float32"), prepare("half"):
        pass
    with pytest.raises(UserError, match="devices=2, but 1 of kind cpu were found"):
        replicas(2)
    assert replicas(0) == replicas(1) == 1


@pytest.fixture
def idle_card(tmp_path, monkeypatch):
    """A stand-in for nvidia-smi that shows cards which the backend, here on a CPU, cannot use; returns its folder."""
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    driver = partial(nvidia_driver, folder=tmp_path / "none")
    monkeypatch.setattr("happywhale_nb.networks.devices.nvidia_driver", driver)
    nvidia_smi(tmp_path, "answers")
    return tmp_path


def test_first_line_on_a_cpu_beside_an_nvidia_card_names_it_and_the_remedy(idle_card):
    line = first_line()
    assert line.startswith(device_line() + "; NVIDIA L4 is not used: ")
    assert "make GPU=1" in line and "happywhale_nb[gpu]" in line
    assert len(line.splitlines()) == 1


def test_first_line_without_a_card_that_could_be_used_is_the_device_line(idle_card, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert first_line() == device_line()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    nvidia_smi(idle_card, "fails")
    assert first_line() == device_line()
    (idle_card / "nvidia-smi").unlink()
    assert first_line() == device_line()


def test_first_line_on_a_gpu_does_not_ask_the_driver(idle_card, monkeypatch):
    monkeypatch.setattr("happywhale_nb.networks.devices.detect_device", lambda: Device("gpu", "NVIDIA L4"))
    monkeypatch.setattr("happywhale_nb.networks.devices.nvidia_driver", None)
    assert first_line() == device_line()


def test_hide_gpus_from_tensorflow_that_has_begun_does_nothing(monkeypatch):
    asked = []

    def refuse(devices, kind):
        asked.append((devices, kind))
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "set_visible_devices", refuse)
    hide_gpus_from_tensorflow()
    assert asked == [([], "GPU")]


@pytest.mark.trains
def test_train_on_a_cpu_beside_an_nvidia_card_says_so_once_in_its_first_line(idle_card, tmp_path, monkeypatch, capsys):
    from test_training import BACKBONES, fit, photographs, small, two_layers

    monkeypatch.setitem(BACKBONES, "two_layers", two_layers)
    fit(photographs(16), tmp_path / "fold", small(epochs=1))
    printed = capsys.readouterr().out.splitlines()
    assert "NVIDIA L4 is not used" in printed[0]
    assert sum("is not used" in line for line in printed) == 1
    keras.config.set_dtype_policy("float32")


def on_jax(what, tests):
    """What a process on JAX with eight devices says that runs tests, after a training on one and on eight devices if
    `what` is "train"."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env = kept | {"KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", ON_JAX, what, str(HERE / tests)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=HERE.parent, timeout=280)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_heads_on_jax_pass_their_tests():
    said = on_jax("test", "test_heads.py")
    name = "test_ArcFaceLoss_with_a_margin_for_each_sample_is_its_formula[0.1]"
    assert any(line.startswith("PASSED") and name in line for line in said.splitlines())


@pytest.mark.soak
def test_train_on_eight_devices_of_jax_gives_the_losses_of_one_and_options_train():
    said = on_jax("train", "test_training.py")
    one, eight = json.loads(said.partition("TRAINED")[2].splitlines()[0])
    assert "8 × cpu" in eight["line"] and "×" not in one["line"]
    assert len(one["losses"]) == len(eight["losses"]) == 10
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-4)
    passed = [line for line in said.splitlines() if line.startswith("PASSED")]
    assert all(any(test in line for line in passed) for test in ("[pool=parts", "growing_crops"))
