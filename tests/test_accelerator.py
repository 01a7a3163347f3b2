"""The benchmark for accelerators: what it imports, that its training is the preset's, and its table."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "bench" / "accelerator.py"
HAD_ANYWHERE = {"keras", "jax", "numpy", "happywhale_nb"}


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return pytest.importorskip("accelerator")


def imports(path):
    """Names of the modules that a file imports, absolute."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            yield ".".join((*above, *filter(None, [node.module])))


def test_accelerator_imports_keras_jax_and_numpy_alone():
    own = {name for name in imports(SCRIPT) if name.startswith("happywhale_nb.")}
    waiting, seen, others = list(own), set(), set()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        for name in imports(ROOT / f"{module.replace('.', '/')}.py"):
            if name.startswith("happywhale_nb.") and name not in seen:
                waiting.append(name)
            others.add(name.partition(".")[0])
    assert own and others - set(sys.stdlib_module_names) <= HAD_ANYWHERE


def test_accelerator_trains_as_the_preset_says(bench):
    from happywhale_nb.networks.presets import configure

    preset = configure("efficientnet_b5_arcface")
    side, _, backbone, theirs = bench.sizes(quick=False)
    assert (preset.backbone, preset.image_size, preset.epochs) == (backbone, side, bench.EPOCHS)
    assert theirs == f"tf_{backbone}"
    head = preset.embedding, preset.arcface_scale, preset.margin, preset.margin_spread, preset.dropout, preset.pool
    assert head == (bench.EMBEDDING, bench.SCALE, bench.MARGIN, bench.SPREAD, bench.DROPOUT, "gap")
    assert (preset.weight_decay, preset.bn_momentum, preset.centres, preset.schedule) == (0, 0.99, 1, "paper")


@pytest.mark.slow
def test_accelerator_builds_the_network_of_a_training(bench):
    from happywhale_nb.networks.model import build_network
    from happywhale_nb.networks.presets import configure

    side, individuals, backbone, _ = bench.sizes(quick=True)
    words = f"backbone={backbone} weights= image_size={side}"
    trained = build_network(configure("efficientnet_b5_arcface", overrides=words), individuals)
    timed = bench.own_trainer(quick=True)
    assert [w.shape for w in timed.weights] == [w.shape for w in trained.weights]
    assert {layer.name: layer.dtype for layer in timed.layers} == {x.name: x.dtype for x in trained.layers}


@pytest.mark.parametrize(
    ("card", "peak"),
    [("NVIDIA H200", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L40S", 362)],
)
def test_peak_of_a_known_card(bench, card, peak):
    assert bench.peak_of(card) == 1e12 * peak


@pytest.mark.parametrize("card", ["", "NVIDIA L40", "NVIDIA GeForce RTX 5090", "NVIDIA GH200 480GB"])
def test_peak_of_an_unknown_card_is_left_open(bench, card):
    assert bench.peak_of(card) is None


def measured(card, **more):
    return {"rate": 500.0, "bytes": 4e10, "ready": 60.0, "card": card, "versions": "", **more}


def test_accelerator_table_leaves_open_what_is_not_known_and_names_what_is_left_out(bench, monkeypatch, capsys):
    answers = {
        (bench.OWN, 64): measured("NVIDIA H200", **{"multiply-adds": 7e9}),
        (bench.THEIRS, 64): measured("NVIDIA H200") | {"rate": 400.0},
        (bench.OWN, 128): measured("NVIDIA H200", **{"multiply-adds": 7e9}),
        (bench.THEIRS, 128): "does not fit into the card's memory",
    }
    monkeypatch.setattr(bench, "child", lambda python, who, batch, quick, seconds: answers[who, batch])
    given = SimpleNamespace(minutes=1, rounds=1, batch=[128, 64], torch="python", quick=False)
    rows, left = bench.measure(given)
    bench.print_rows(rows, left, quick=False)
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith(("| 64", "| 128"))]
    assert [line.split(" | ")[3] for line in table] == ["1.25", "1.00", ""]
    assert " 2.1% " in table[0] and " 0.9 h " in table[0] and "40.0 GB" in table[0]
    assert any(line.startswith("not measured: round 1, 128 photographs a batch, timm") for line in lines)


def test_accelerator_without_a_card_says_so_and_measures_nothing(bench, monkeypatch, capsys):
    monkeypatch.setattr(bench, "child", lambda *_: bench.NO_CARD)
    with pytest.raises(SystemExit) as stopped:
        bench.measure(SimpleNamespace(minutes=1, rounds=1, batch=[64], torch="", quick=False))
    assert not stopped.value.code and "no accelerator" in capsys.readouterr().out


@pytest.mark.soak
def test_accelerator_quick_prints_its_table_and_says_that_it_measures_nothing():
    done = subprocess.run([sys.executable, SCRIPT, "--quick"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "| 8 | this project, Keras on JAX |" in done.stdout and "measures nothing" in done.stdout


@pytest.mark.soak
def test_accelerator_reports_a_process_that_fails(bench):
    assert json.dumps(bench.child(sys.executable, "nobody", 1, True, 60)).startswith('"')
