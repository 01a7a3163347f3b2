"""Study files that are small and mean something huge: aliases of aliases, endless nesting, values without end."""

import time

import pytest
from click.testing import CliRunner

from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.workflow.study import check_study, read_study


def bomb(levels, wide=9):
    lines = ["a0: &a0 x"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * wide)}]" for i in range(1, levels + 1)]
    return "\n".join([*lines, f"models: *a{levels}"])


def chain(text, levels=30):
    return "\n".join(["a0: &a0 {x: 1}", *(f"a{i + 1}: &a{i + 1} {text.format(i)}" for i in range(levels))])


FILES = {
    "six levels of aliases": bomb(6),
    "eight levels of aliases": bomb(8),
    "forty levels of aliases": bomb(40, 2),
    "aliases of mappings": "\n".join(
        f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}" if i else "a0: &a0 x" for i in range(30)
    ),
    "aliases as keys": "a: &a [x, x]\n? *a\n: 1",
    "an alias in its own anchor": "models: &m {a: *m}",
    "a list in itself": "models: &m [*m]",
    "three thousand levels": "models: " + "[" * 3000,
    "levels of mappings": "models: " + "{a: " * 3000,
    "thirty levels": "models: " + "[" * 30 + "]" * 30,
    "levels by indents": "\n".join(" " * i + "a:" for i in range(900)),
    "a long value": "models: " + "x" * 100_000,
    "a long key": "x" * 6000 + ": 1",
    "many values": "models: [" + "x, " * 11_000 + "]",
    "a large file": "# " + "x" * 2_000_000,
    "merged mappings": "\n".join(
        f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" if i else "a0: &a0 {x: 1}" for i in range(30)
    ),
    "a tag of Python": "models: !!python/object/apply:os.system [ls]",
    "a zero byte": "models: \0",
}


@pytest.mark.parametrize("kind", FILES)
def test_a_study_file_of_no_sense_ends_at_once_with_one_short_line(kind, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(FILES[kind])
    began = time.monotonic()
    done = CliRunner().invoke(main, ["run", str(path)])
    assert time.monotonic() - began < 5
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.exception
    assert len(done.stderr.splitlines()) == 1 and len(done.stderr) < 1000, done.stderr[:2000]


def test_anchors_that_save_writing_work_as_before(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("models:\n  a: &base {preset: basic_cnn, epochs: 3}\n  b: {<<: *base, epochs: 4}\n  c: *base\n")
    models = check_study(read_study(path)).models
    assert [model["epochs"] for model in models.values()] == ["3", "4", "3"]


def test_messages_show_values_in_short():
    for content in ({"models": ["x" * 3000]}, {"models": {"basic_cnn": ["y" * 3000]}}):
        with pytest.raises(UserError) as error:
            check_study(content)
        assert len(str(error.value)) < 400
