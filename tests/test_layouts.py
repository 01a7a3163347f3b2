"""Layouts of folders are recognised as a whole, or asked for; nothing is guessed and nothing is lost."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.data.layouts import AGAIN, HIDDEN, LOCKED, OUTSIDE, parse_layout, read_folders, recognise, walk_files

NAMES = {
    "animal": st.sampled_from(["Hope", "Old Scar", "W7", "BD-0001", "Sirius", "012", "Zoë", "Nº 12", "O'Brien"]),
    "species": st.sampled_from(["fin_whale", "Tursiops truncatus", "grey seal", "Green turtle", "orca"]),
    "side": st.sampled_from(["Left", "RIght", "left_side", "port", "starboard", "Right flank"]),
    "day": st.sampled_from(["2019-07-13", "20200601", "2021_05_02 North", "13.07.2019", "July 2018"]),
    "split": st.sampled_from(["train", "val", "test"]),
}
LAYOUTS = ["animal", "animal/side", "animal/day", "day/animal", "day", "species/animal", "species/animal/day",
           "species/animal/side", "split/animal", "split/species/animal", "animal/side/day", "side/animal"]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=20)
@given(data=st.data())
def test_recognise_finds_the_layout_that_made_the_folders(layout, data):
    kinds = layout.split("/")
    one = st.tuples(*(NAMES[kind] for kind in kinds))
    folders = set(data.draw(st.lists(one, min_size=1, max_size=8)))
    levels = recognise(folders, "photos")
    assert {tuple(levels[parts[: i + 1]].kind for i in range(len(parts))) for parts in folders} == {tuple(kinds)}
    assert recognise(folders, "photos", layout) == levels, "as if the user had said so"


@pytest.mark.parametrize(
    "paths, taken",
    [
        ("Hope/L Hope/R Nova/L", "animal/side"),
        ("Hope/dx Hope/sx", "animal/side"),
        ("Hope/left Hope/right Hope/tail", "animal/side"),
        ("J K L", "animal"),
        ("whales/Hope whales/Nova", "-/animal"),
        ("walrus/Hope walrus/Nova", "species/animal"),
        ("whale1 whale2 whale3", "animal"),
        ("species1/whale1 species2/whale2", "species/animal"),
        ("fin_whale/A fin_whale/B", "species/animal"),
        ("2019/Hope 2020/Nova", "day/animal"),
        ("2019/07/13/Hope 2020/06/01/Nova", "day/day/day/animal"),
        ("Hope/2019 Nova/2020", "animal/day"),
        ("photos/Hope photos/Nova", "-/animal"),
        ("Hope/100CANON Nova/101CANON", "animal/-"),
        ("Hope/Encounter_1 Hope/Encounter_2", "animal/encounter"),
        ("train_images/Hope test_images/Nova", "split/animal"),
        ("unknown/2019-07-13", "animal/day"),
        ("export/fin_whale/Hope export/orca/Nova", "-/species/animal"),
        ("fin_whale humpback_whale", "species"),
    ],
)
def test_recognise_of_names_that_need_their_neighbours(paths, taken):
    folders = {tuple(path.split("/")) for path in paths.split()}
    levels = recognise(folders, "photos")
    assert {"/".join(levels[p[: i + 1]].kind for i in range(len(p))) for p in folders} == {taken}


@pytest.mark.parametrize(
    "paths, words",
    [
        ("Bay/Hope Cove/Nova", ["layout is ambiguous (Bay, Cove; below them Hope, Nova)", "--layout place/animal"]),
        ("Hope/Bay Hope/Cove", ["--layout animal/encounter"]),
        ("x/y/z", ["x; below them y; below them z"]),
        ("2019 2020", ["2019, 2020 can be years or animals", "--layout day", "--layout animal"]),
        ("Hope/07-08-2019", ["Hope/07-08-2019", "2019-07-08 or 2019-08-07", "--dates"]),
    ],
)
def test_recognise_of_an_ambiguous_layout_asks(paths, words):
    with pytest.raises(UserError) as caught:
        recognise({tuple(path.split("/")) for path in paths.split()}, "photos")
    assert [word for word in words if word not in str(caught.value)] == []


def test_recognise_with_a_layout_that_does_not_fit_names_the_folder():
    with pytest.raises(UserError, match="folder Hope/North: 'North' is not a side"):
        recognise({("Hope", "Left"), ("Hope", "North")}, "photos", "animal/side")
    for text in ("whale", "animal/animal", "/"):
        with pytest.raises(UserError, match="--layout"):
            parse_layout(text)


# --- photographs


def put(top, *names, taken=""):
    for i, name in enumerate(names):
        path, exif = top / name, Image.Exif()
        path.parent.mkdir(parents=True, exist_ok=True)
        if taken:
            exif[0x0132] = taken
        Image.new("RGB", (72, 48), (i * 20 % 255, 90, 140)).save(path, "JPEG", exif=exif)


def test_read_folders_gives_sides_days_encounters_places_and_species(tmp_path):
    put(
        tmp_path, "fin_whale/Hope/Left/1.jpg", "fin_whale/Hope/RIght/2019-07-13/2.jpg", "fin_whale/loose.jpg", "top.jpg"
    )
    found = read_folders(tmp_path)
    rows = found.rows.set_index("image")[["individual_id", "species", "side", "date"]]
    assert rows.T.to_dict("list") == {
        "fin_whale/Hope/Left/1.jpg": ["Hope", "fin_whale", "left", ""],
        "fin_whale/Hope/RIght/2019-07-13/2.jpg": ["Hope", "fin_whale", "right", "2019-07-13"],
        "fin_whale/loose.jpg": ["", "fin_whale", "", ""],
        "top.jpg": ["", "", "", ""],
    }
    assert [line.strip() for line in found.tree] == [
        "folders are taken for",
        "no folder: 1 photograph without a name",
        "species (1: fin_whale): 1 photograph without a name",
        "animal (1: Hope)",
        "side (2: Left, RIght): 1 photograph",
        "day (1: 2019-07-13): 1 photograph",
    ]
    placed = read_folders(tmp_path, layout="place/animal/side/day").rows
    assert set(placed["place"]) == {"", "fin_whale"} and set(placed["species"]) == {""}


def test_read_folders_takes_the_folders_day_before_another_of_the_camera(tmp_path):
    put(tmp_path, "2019-07-13/Hope/1.jpg", taken="2019:07:13 14:05:00")
    put(tmp_path, "2019-07-13/Hope/2.jpg", taken="2012:01:01 00:00:00")
    found = read_folders(tmp_path)
    assert found.rows["date"].tolist() == ["2019-07-13T14:05:00", "2019-07-13"]
    assert found.notes == ("1 photographs have another day inside than their folder: the folder's is taken",)


def test_read_folders_of_one_name_in_two_species_is_refused(tmp_path):
    put(tmp_path, "fin_whale/01/1.jpg", "orca/01/2.jpg")
    with pytest.raises(UserError, match="01 lies in the folders of fin_whale and of orca"):
        read_folders(tmp_path)


def test_read_folders_of_a_data_folder_says_so(tmp_path):
    put(tmp_path, "train_images/1.jpg")
    (tmp_path / "train.csv").write_text("image,species,individual_id\n1.jpg,orca,Hope\n")
    with pytest.raises(UserError, match="is a data folder already"):
        read_folders(tmp_path)


@settings(max_examples=30)
@given(data=st.data())
def test_walk_files_lists_each_file_once_whatever_links_there_are(data, tmp_path_factory):
    top = tmp_path_factory.mktemp("walk") / "chosen"
    folders = [top, top / "a", top / "a" / "b", top / "c", top / ".hidden", top.parent / "elsewhere"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{folder.name}.txt").touch()
    for i in range(data.draw(st.integers(0, 4))):
        link = data.draw(st.sampled_from(folders[:4])) / f"link{i}"
        link.symlink_to(data.draw(st.sampled_from(folders)), target_is_directory=True)
    inside, left_out = walk_files(top)
    real = [path.resolve() for path in inside]
    assert len(real) == len(set(real)) and {path.name for path in inside} >= {"chosen.txt", "a.txt", "b.txt", "c.txt"}
    assert not any("elsewhere" in path.parts for path in real)
    followed = {path.resolve() for path in walk_files(top, follow_links=True)[0]}
    assert followed - set(real) <= {folders[-1] / "elsewhere.txt"}
    assert (folders[-1] / "elsewhere.txt" in followed) == any(kind.reason == OUTSIDE for kind in left_out)


def test_walk_files_counts_hidden_files_broken_links_and_locked_folders(tmp_path):
    put(tmp_path, "Hope/1.jpg", "Hope/._1.jpg", "Hope/.thumbnails/1.jpg", "Hope/@eaDir/1.jpg/S.jpg")
    put(tmp_path, "__MACOSX/Hope/1.jpg", "Thumbs/1.jpg")
    (tmp_path / "Hope" / "Thumbs.db").touch()
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "Hope" / "again").symlink_to("../Hope")
    files, left_out = walk_files(tmp_path)
    assert [path.name for path in files] == ["1.jpg"]
    kinds = {kind.reason: kind.names for kind in left_out}
    assert kinds[HIDDEN] == ("Hope/._1.jpg", "Hope/.thumbnails", "Hope/@eaDir", "Thumbs", "__MACOSX")
    assert kinds[AGAIN] == ("Hope/again",) and ("gone.jpg",) in kinds.values()
    if os.geteuid() != 0:
        (tmp_path / "Hope").chmod(0)
        assert walk_files(tmp_path)[1][-1].reason == LOCKED
        (tmp_path / "Hope").chmod(0o755)


# --- the command


def run(*arguments):
    return CliRunner().invoke(main, ["data", "import", *map(str, arguments)])


def test_import_command_shows_the_tree_asks_and_obeys_the_layout(tmp_path):
    put(tmp_path / "set", "Bay/Hope/1.jpg", "Bay/Nova/2.jpg", "Cove/Vega/3.jpg")
    asked = run(tmp_path / "set", "--to", tmp_path / "d", "--dry-run")
    assert asked.exit_code == 2 and "--layout place/animal" in asked.stderr
    told = run(tmp_path / "set", "--to", tmp_path / "d", "--layout", "place/animal", "--species", "orca", "--dry-run")
    assert told.exit_code == 0 and not (tmp_path / "d").exists()
    assert "  place (2: Bay, Cove)\n    animal (3: Hope, Nova, Vega): 3 photographs" in told.stdout
    run(tmp_path / "set", "--to", tmp_path / "d", "--layout", "place/animal", "--species", "orca")
    train = read_dataset(tmp_path / "d").train
    assert dict(zip(train["individual_id"], train["place"], strict=True)) == {
        "Hope": "Bay",
        "Nova": "Bay",
        "Vega": "Cove",
    }


@pytest.mark.parametrize("owned", [True, False])
def test_import_command_never_ignores_species_without_a_word(tmp_path, owned):
    put(tmp_path / "set", "orca/Hope/1.jpg", "orca/Nova/2.jpg", *([] if owned else ["Vega/3.jpg"]))
    result = run(tmp_path / "set", "--to", tmp_path / "d", "--species", "fin_whale")
    assert result.exit_code == 0, result.output
    assert "--species fin_whale" in result.stdout
    assert set(read_dataset(tmp_path / "d").train["species"]) == {"orca"} | (set() if owned else {"fin_whale"})


def test_import_command_of_folders_without_any_name_tells_what_they_are_taken_for(tmp_path):
    put(tmp_path / "set", "Left/1.jpg", "Right/2.jpg")
    result = run(tmp_path / "set", "--to", tmp_path / "d")
    assert result.exit_code == 2 and "side (2: Left, Right)" in result.output and "--layout" in result.output
    assert not Path(tmp_path / "d").exists()


@pytest.mark.skipif(os.name == "nt", reason="names of files are text there")
def test_import_command_of_names_that_are_no_text_writes_them_readable(tmp_path):
    put(tmp_path, "set/x.jpg", "set/Hope/y.jpg")
    folder = os.fsencode(tmp_path / "set") + b"/Fj\xe4rd"
    os.mkdir(folder)
    os.rename(tmp_path / "set" / "x.jpg", folder + b"/na\xefve.jpg")
    assert run(tmp_path / "set", "--to", tmp_path / "d", "--species", "orca").exit_code == 0
    train = read_dataset(tmp_path / "d").train
    assert dict(zip(train["image"], train["individual_name"], strict=True)) == {"naïve.jpg": "Fjärd", "y.jpg": "Hope"}


def test_import_command_of_a_table_finds_photographs_behind_links_inside_its_folder(tmp_path):
    put(tmp_path, "set/.store/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "set" / "2019").symlink_to(".store")
    (tmp_path / "set" / "2020").symlink_to("../elsewhere")
    (tmp_path / "set" / "t.csv").write_text("image,individual_id,species\na.jpg,Hope,orca\nb.jpg,Nova,orca\n")
    refused = run(tmp_path / "set" / "t.csv", "--to", tmp_path / "d")
    assert refused.exit_code == 2 and "b.jpg" in refused.stderr and "'a.jpg'" not in refused.stderr
    assert run(tmp_path / "set" / "t.csv", "--to", tmp_path / "d", "--follow-links").exit_code == 0
    assert len(read_dataset(tmp_path / "d").train) == 2
