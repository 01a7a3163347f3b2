"""Files that are whole or not there, JSON that comes back as it was written, fingerprints, and where data are found."""

import errno
import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from happywhale_nb.core.artifacts import atomic, fingerprint, is_done, read_json, versions, write_json
from happywhale_nb.core.errors import UserError
from happywhale_nb.core.paths import find_data, fold_dir, on_kaggle, project_root, study_dir

quick = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def put(path, content):
    """Write a file (content is text) or a folder of files (content is a dict) to `path`."""
    if isinstance(content, dict):
        path.mkdir(parents=True)
        for name, text in content.items():
            (path / name).write_text(text)
    else:
        path.write_text(content)


def contents(path):
    """What stands at `path`: None, a text, or a dict of the files in it."""
    if not path.exists():
        return None
    return {p.name: p.read_text() for p in path.iterdir()} if path.is_dir() else path.read_text()


class Stop(BaseException):
    """Something that no `except Exception` catches, like a kill from the keyboard."""


FILES = st.dictionaries(st.sampled_from("abc"), st.text("xyz", max_size=3), max_size=3)
OLD = st.none() | st.text("xyz", max_size=3) | FILES
FAULTS = [None, Stop("stopped"), ValueError("no"), UserError("no"), OSError(errno.ENOSPC, "No space left on device")]


def write_parts(part, new, step=None, fault=None):
    """Write `new` to `part` piece by piece, and raise `fault`, if there is one, before the piece of number `step`."""
    pieces = [*new.items()] if isinstance(new, dict) else [*new]
    part.mkdir() if isinstance(new, dict) else part.write_text("")
    for number, piece in enumerate([*pieces, None]):
        if fault is not None and number == min(step, len(pieces)):
            raise fault
        if piece is not None and isinstance(new, dict):
            (part / piece[0]).write_text(piece[1])
        elif piece is not None:
            part.write_text(part.read_text() + piece)


@quick
@given(OLD, st.text("xyz", max_size=3) | FILES, st.integers(0, 4), st.sampled_from(FAULTS))
def test_atomic_with_an_exception_at_any_step_leaves_the_old_content(tmp_path, old, new, step, fault):
    """The block breaks off at some step, or does not: what stands is the old or the new, whole, and nothing beside."""
    home = tmp_path / "home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    target = home / "place"
    if old is not None:
        put(target, old)
    in_the_way = old is not None and isinstance(old, dict) != isinstance(new, dict)  # neither replaces the other
    try:
        with atomic(target) as part:
            write_parts(part, new, step, fault)
            assert contents(target) == old, "nothing is seen before the end"
    except (Stop, ValueError, UserError) as error:
        told = error is fault or (isinstance(error, UserError) and error.__cause__ is fault)
        assert told if fault is not None else in_the_way
        assert contents(target) == old
    else:
        assert fault is None and not in_the_way and contents(target) == new
    assert {p.name for p in home.iterdir()} <= {"place"}


def test_atomic_in_a_place_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused = pytest.raises(UserError, match=r"cannot write .*file/inside/new\.txt.*choose another folder")
    with refused, atomic(tmp_path / "file" / "inside" / "new.txt"):
        pytest.fail("the block is not entered")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_atomic_with_an_error_of_another_file_passes_it_on(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"other\.txt"), atomic(tmp_path / "new.txt"):
        (tmp_path / "other.txt").read_text()
    with pytest.raises(UserError, match=r"cannot write .*new\.txt: No such file"), atomic(tmp_path / "new.txt") as part:
        (part / "nowhere").write_text("")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("old", [None, "old"])  # a limit: an old folder is gone then
def test_atomic_with_a_block_that_writes_nothing_is_refused_and_leaves_the_old_content(tmp_path, old):
    if old is not None:
        put(tmp_path / "place", old)
    with pytest.raises(UserError, match=r"cannot write .*place: No such file"), atomic(tmp_path / "place"):
        pass
    assert contents(tmp_path / "place") == old and {p.name for p in tmp_path.iterdir()} <= {"place"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def without_nan(value):
    """The value as JSON can hold it: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {name: without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@settings(quick, max_examples=50)
@given(JSON)
def test_write_json_of_any_value_reads_back_the_same(tmp_path, value):
    write_json(tmp_path / "value.json", value)
    back = read_json(tmp_path / "value.json")
    assert repr(back) == repr(without_nan(value))  # repr: -0.0, 1 and 1.0, True and 1 are told apart


def test_write_json_of_numpy_values_and_paths_writes_plain_ones(tmp_path):
    value = {
        "n": np.int64(3),
        "x": np.float32(np.inf),
        "yes": np.True_,
        "who": np.array(["Äø"]),
        7: tmp_path,
        "t": (1,),
    }
    write_json(tmp_path / "deep" / "value.json", value)
    plain = {"n": 3, "x": None, "yes": True, "who": ["Äø"], "7": str(tmp_path), "t": [1]}
    assert read_json(tmp_path / "deep" / "value.json") == plain
    text = (tmp_path / "deep" / "value.json").read_text(encoding="utf-8")
    assert text.startswith('{\n "n": 3,\n') and text.endswith("}\n") and "Äø" in text


def test_write_json_of_a_value_json_cannot_hold_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "value.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "value.json", {"new": {1, 2}})
    assert read_json(tmp_path / "value.json") == {"old": 1} and len(list(tmp_path.iterdir())) == 1


def test_read_json_of_an_absent_or_broken_file_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"none\.json is missing: run the stage"):
        read_json(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"half\.json is not valid JSON .* delete it"):
        read_json(tmp_path / "half.json")


def reordered(value):
    """The same value with the entries of every dict in the reverse order."""
    if isinstance(value, dict):
        return {name: reordered(value[name]) for name in reversed(value)}
    return [*map(reordered, value)] if isinstance(value, list) else value


@quick
@given(JSON, JSON)
def test_fingerprint_of_any_values_depends_on_what_they_say_alone(one, two):
    assert fingerprint(one, two) == fingerprint(reordered(one), reordered(two))
    assert len(fingerprint(one)) == 16 and set(fingerprint(one)) <= set("0123456789abcdef")
    assume(json.dumps(without_nan(one), sort_keys=True) != json.dumps(without_nan(two), sort_keys=True))
    assert len({fingerprint(one), fingerprint(two), fingerprint(one, two), fingerprint(two, one)}) == 4


def test_fingerprint_of_files_depends_on_names_and_content_and_not_on_places(tmp_path):
    stamps = []
    for folder, name, text in (("a", "x", "1"), ("b", "x", "1"), ("c", "y", "1"), ("d", "x", "2")):
        put(tmp_path / folder, {name: text})
        stamps.append(fingerprint("v", files=[tmp_path / folder / name]))
    assert stamps[0] == stamps[1] and len(set(stamps)) == 3
    assert fingerprint("v") not in stamps


def test_fingerprint_of_photographs_depends_on_names_and_sizes(tmp_path):
    stamps = []
    for folder, name, text in (("a", "x", "11"), ("b", "x", "22"), ("c", "y", "11"), ("d", "x", "333")):
        put(tmp_path / folder, {name: text})
        stamps.append(fingerprint("v", photos=[tmp_path / folder / name]))
    assert stamps[0] == stamps[1] and len(set(stamps)) == 3


def test_is_done_of_a_record_or_an_output_that_is_missing_is_false(tmp_path):
    record, one, two = (tmp_path / name for name in ("record.json", "one", "two"))
    assert not is_done(record, "s")
    write_json(record, {"stamp": "s"})
    assert is_done(record, "s") and not is_done(record, "t")
    one.touch()
    assert not is_done(record, "s", [one, two]) and not is_done(record, "s", [two, one])
    two.touch()
    assert is_done(record, "s", [one, two])
    write_json(record, {"other": 1})
    assert not is_done(record, "s")


def test_versions_without_names_are_those_of_python_project_and_tables():
    assert list(versions()) == ["python", "happywhale_nb", "numpy", "pandas", "scikit-learn"]
    assert versions("numpy") == {name: versions()[name] for name in ("python", "happywhale_nb", "numpy")}
    assert versions()["numpy"] == np.__version__


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty project, and the current folder inside of it; nothing of Kaggle's is there."""
    root = tmp_path / "project"
    (root / "nbs" / "lib").mkdir(parents=True)
    (root / "settings.ini").touch()
    monkeypatch.chdir(root / "nbs" / "lib")
    monkeypatch.setenv("HAPPYWHALE_KAGGLE", str(tmp_path / "kaggle"))
    monkeypatch.delenv("HAPPYWHALE_DATA", raising=False)
    return root.resolve()


def data_in(folder):
    put(folder, {"train.csv": ""})
    return folder.resolve()


def test_project_root_is_the_nearest_folder_with_settings_and_notebooks(root, tmp_path):
    assert project_root() == root
    (root / "nbs" / "settings.ini").touch()  # settings alone make no project
    assert project_root() == root and project_root(root) == root
    installed = project_root(tmp_path)  # the checkout the package is from
    assert (installed / "happywhale_nb" / "core" / "paths.py").is_file()


def test_find_data_looks_in_the_given_order_of_places(root, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no data found .*data/happywhale, .*data/demo\): specify a folder"):
        find_data()
    demo = data_in(root / "data" / "demo")
    assert find_data() == demo
    happywhale = data_in(root / "data" / "happywhale")
    assert find_data() == happywhale
    deep = data_in(tmp_path / "kaggle" / "input" / "competitions" / "owner" / "whales")
    assert find_data() == deep
    attached = data_in(tmp_path / "kaggle" / "input" / "whales")
    assert find_data() == attached
    named = tmp_path / "named"
    named.mkdir()
    monkeypatch.setenv("HAPPYWHALE_DATA", str(named))
    assert find_data() == named.resolve()
    assert find_data("data/demo") == demo and find_data(happywhale) == happywhale
    with pytest.raises(UserError, match="no data folder at"):
        find_data("train.csv")


def test_on_kaggle_is_known_by_its_working_folder(root, tmp_path):
    assert not on_kaggle()
    (tmp_path / "kaggle" / "working").mkdir(parents=True)
    assert on_kaggle()


def test_study_dir_is_one_folder_below_outputs_named_by_the_study_or_the_data(root):
    data_in(root / "data" / "demo")
    assert study_dir() == root / "outputs" / "demo"
    assert study_dir("mine", quick=True) == root / "outputs" / "mine-quick"
    assert fold_dir(study_dir("mine"), "net", 3) == root / "outputs" / "mine" / "net" / "fold3"
    for name in ("a/b", "..", ".", "../x", "/tmp"):
        with pytest.raises(UserError, match="one folder name"):
            study_dir(name)
