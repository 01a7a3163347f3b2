"""What refused and killed requests leave, what a stopped service leaves, and what `tidy` may never take."""

import io
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sqlalchemy import func, select
from strangers import serving

from happywhale_nb.catalogue import corrections, upload_photos
from happywhale_nb.catalogue.backup import back_up, check_backup, restore
from happywhale_nb.catalogue.corrections import withdraw_encounter
from happywhale_nb.catalogue.ingest import ingest_dataset
from happywhale_nb.catalogue.layout import catalogue_layout
from happywhale_nb.catalogue.matching import Matcher
from happywhale_nb.catalogue.photo_files import content_digest
from happywhale_nb.catalogue.schema import Decision, Encounter, Photo
from happywhale_nb.catalogue.store import Catalogue, create_catalogue
from happywhale_nb.catalogue.tidy import tidy
from happywhale_nb.catalogue.upload_photos import Metadata, ingest_uploads
from happywhale_nb.cli.main import main
from happywhale_nb.core.artifacts import read_json, write_json
from happywhale_nb.core.errors import UserError
from happywhale_nb.core.leases import leased
from happywhale_nb.core.shares import mount_type, share_line
from happywhale_nb.data.dataset import read_dataset

ROOT = Path(__file__).resolve().parents[2]


def photograph(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (30, 40, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def stored(catalogue):
    """Files below the folder of uploads, with those in hidden folders."""
    return sorted(path.name for path in (catalogue.folder / "photos").rglob("*") if path.is_file())


def known(catalogue):
    with catalogue.reading() as session:
        return sorted(Path(path).name for path in session.scalars(select(Photo.path).where(Photo.kept)))


class Stuck:
    """An embedder that goes on when it is told to."""

    def __init__(self, embedder):
        self.inner, self.go_on, self.reached = embedder, threading.Event(), threading.Event()

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def embed(self, *given):
        self.reached.set()
        assert self.go_on.wait(60)
        return self.inner.embed(*given)


# --- requests that are refused


def test_refused_uploads_leave_no_file(mine, colours):
    first = ingest_uploads(mine, colours, "Ann", [("a.png", photograph(1))], metadata=Metadata(name="visit"))
    before = stored(mine)
    assert before == known(mine) and len(before) == 1
    refused = [
        {"files": [("b.png", photograph(2))], "number": 9999},
        {"files": [("b.png", photograph(2))], "metadata": Metadata(name="visit")},
        {"files": [("b.png", photograph(2)), ("a.png", photograph(1))]},
        {"files": [("b.png", photograph(2)), ("x.png", b"no photograph")], "number": first},
    ]
    for given in refused:
        with pytest.raises(UserError):
            ingest_uploads(mine, colours, "Ann", **given)
        assert stored(mine) == before, given


@pytest.mark.parametrize("step", ["_add_photos", "place_photos", "_log_upload"])
def test_upload_that_fails_in_its_transaction_leaves_no_file(mine, colours, monkeypatch, step):
    original = getattr(upload_photos, step)

    def fail(*given, **more):
        original(*given, **more)
        raise RuntimeError("the power is gone")

    monkeypatch.setattr(upload_photos, step, fail)
    with pytest.raises(RuntimeError):
        ingest_uploads(mine, colours, "Ann", [("a.png", photograph(1))])
    assert stored(mine) == known(mine) == []
    monkeypatch.undo()
    ingest_uploads(mine, colours, "Ann", [("a.png", photograph(1))])
    assert stored(mine) == known(mine) and len(known(mine)) == 1


def test_two_requests_with_the_same_photograph_leave_the_one_that_is_taken(mine, colours):
    stuck, refused = Stuck(colours), []

    def late():
        try:
            ingest_uploads(mine, stuck, "Bo", [("a.png", photograph(1)), ("b.png", photograph(2))])
        except UserError as error:
            refused.append(str(error))

    thread = threading.Thread(target=late)
    thread.start()
    assert stuck.reached.wait(30)
    ingest_uploads(mine, colours, "Ann", [("a.png", photograph(1))])
    stuck.go_on.set()
    thread.join(30)
    assert len(refused) == 1 and stored(mine) == known(mine) and len(known(mine)) == 1


# --- tidy while others work


def test_tidy_takes_nothing_from_an_upload_in_progress(mine, colours):
    stuck, codes = Stuck(colours), []
    with serving(mine, stuck) as ((host, port, *_), token):
        where, headers = f"http://{host}:{port}/api/encounters", {"authorization": f"Bearer {token}"}

        def send():
            files = {"photos": ("fin.png", photograph(7))}
            codes.append(httpx.post(where, files=files, headers=headers, timeout=60).status_code)

        thread = threading.Thread(target=send)
        thread.start()
        assert stuck.reached.wait(30)
        for _ in range(3):
            told = tidy(mine, old=0)
            assert told.count == 0 and len(told.left) == 1
        stuck.go_on.set()
        thread.join(60)
    assert codes == [201] and stored(mine) == known(mine) and len(known(mine)) == 1
    assert tidy(mine).lines() == ["nothing to remove"]


def test_tidy_during_uploads_of_many_loses_nothing(mine, colours):
    ended, numbers = threading.Event(), []

    faults = []

    def sweep():
        while not ended.is_set():
            try:
                tidy(mine, old=0)
            except Exception as error:
                faults.append(error)

    def send(part):
        for seed in range(10 * part, 10 * part + 4):
            numbers.append(ingest_uploads(mine, colours, "Ann", [("a.png", photograph(100 + seed))]))

    sweeper, senders = threading.Thread(target=sweep), [threading.Thread(target=send, args=(i,)) for i in range(3)]
    for thread in (sweeper, *senders):
        thread.start()
    for thread in senders:
        thread.join(60)
    ended.set()
    sweeper.join(60)
    assert not faults and len(numbers) == 12 and stored(mine) == known(mine) and len(known(mine)) == 12


KILLED = """
import os, sys, threading, time
from happywhale_nb.catalogue import corrections, upload_photos
from happywhale_nb.catalogue.example import ColourEmbedder
from happywhale_nb.catalogue.store import Catalogue
step = sys.argv[2]
original = getattr(upload_photos, step)
def die(*given, **more):
    done = original(*given, **more)
    os._exit(9)
setattr(upload_photos, step, die)
files = [("a.png", open(sys.argv[3], "rb").read())]
upload_photos.ingest_uploads(Catalogue(sys.argv[1]), ColourEmbedder(), "Ann", files)
"""


def killed(catalogue, step, tmp_path):
    """An upload by another process, which dies after a step."""
    (tmp_path / "photo.png").write_bytes(photograph(step.encode()[-1]))
    words = [sys.executable, "-c", KILLED, str(catalogue.folder), step, str(tmp_path / "photo.png")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 9, done.stderr


@pytest.mark.soak
def test_what_killed_uploads_leave_is_gone_at_the_next_start_however_young(mine, colours, tmp_path):
    for step in ("keep_photo", "place_photos"):
        killed(mine, step, tmp_path)
    assert len(stored(mine)) > 2 and known(mine) == []
    parts = {part.what: part.count for part in catalogue_layout(mine)}
    assert parts["left by interrupted commands"] >= 3
    with serving(mine, colours), leased(mine.folder / "photos", "upload") as running:
        told = tidy(mine)  # what `serve` does when it starts
        assert told.left == (running,)
    assert stored(mine) == []


def test_tidy_spares_what_is_young_and_what_is_not_the_catalogues(mine):
    (mine.folder / ".start.json.abcd1234").mkdir()
    (mine.folder / "photos" / "notes").mkdir(parents=True)
    (mine.folder / "photos" / "notes" / "mine.txt").write_text("mine")
    old = mine.folder / ".catalogue.json.abcd1234"
    old.mkdir()
    os.utime(old, (time.time() - 90, time.time() - 90))
    would = tidy(mine, dry_run=True)
    assert would.count == 1 and old.is_dir()
    told = tidy(mine)
    assert told.count == 1 and not old.exists() and len(told.left) == 1 and len(told.strangers) == 1
    assert "in photos, but not the catalogue's: 1 left (mine.txt)" in told.lines()


def test_tidy_cache_removes_what_can_be_made_again(mine, colours):
    shutil.copy(mine.folder / "catalogue.sqlite", mine.folder / "catalogue-0001.sqlite")
    with mine.writing() as session:
        session.connection().exec_driver_sql(
            "INSERT INTO models (fingerprint, name, width, settings, created_at) VALUES ('f0', 'old', 48, '{}', '')"
        )
        columns = "vector, trained, sha256, box FROM embeddings WHERE model_id = 1"
        session.connection().exec_driver_sql(f"INSERT INTO embeddings SELECT annotation_id, 2, {columns}")
    picture = mine.folder / "shown" / "ab" / "abcd.jpg"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"small")
    assert tidy(mine).count == 0
    parts = {part.what: part.count for part in catalogue_layout(mine) if part.kind == "cache"}
    assert parts["embeddings by former encoders"] == 58 and parts["copies of the database by `upgrade`"] == 1
    with leased(mine.folder, "encoder"), pytest.raises(UserError, match="being prepared"):
        tidy(mine, cache=True)
    assert tidy(mine, cache=True).count == 60 and not picture.exists()
    assert not any(part.count for part in catalogue_layout(mine) if part.kind == "cache")


def test_encoder_that_an_earlier_version_had_moved_aside_comes_back(mine):
    lost = mine.folder / ".model.abcd1234" / "replaced"
    lost.mkdir(parents=True)
    (lost / "model.keras").write_bytes(b"one")
    tidy(mine, old=0)
    assert mine.model_path.read_bytes() == b"one"


# --- a service that is stopped

SERVED = """
import signal, sys, threading, time
from happywhale_nb.catalogue.example import ColourEmbedder
from happywhale_nb.catalogue.store import Catalogue
from happywhale_nb.server import run
catalogue = Catalogue(sys.argv[1])
def ready():
    with catalogue.writing() as session:
        from happywhale_nb.catalogue.schema import Encounter
        session.get(Encounter, 1).place = "the last decision"
    with catalogue.reading() as session:  # an open reader, as of a request that hangs
        pass
    print("ready", flush=True)
if sys.argv[2] == "fails":
    run.make_app = lambda *given: 1 / 0
    ready()
run.serve(catalogue, port=0, embedder=ColourEmbedder(), ready=ready)
print("stopped", flush=True)
"""


def last_decision(path):
    """What somebody reads who copies the database's file alone."""
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT place FROM encounters WHERE id = 1").fetchone()[0]


ENDINGS = [pytest.param("SIGTERM", marks=pytest.mark.slow)]
ENDINGS += [pytest.param(ending, marks=pytest.mark.soak) for ending in ("SIGINT", "fails")]


@pytest.mark.parametrize("ending", ENDINGS)
def test_stopped_service_leaves_its_decisions_in_one_file(mine, tmp_path, ending):
    mine.close()
    command = [sys.executable, "-c", SERVED, str(mine.folder), ending]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        if ending != "fails":
            process.send_signal(getattr(signal, ending))
        rest, told = process.communicate(timeout=60)
    assert (process.returncode, rest) == ((1, "") if ending == "fails" else (0, "stopped\n")), told
    copied = shutil.copy(mine.folder / "catalogue.sqlite", tmp_path / "alone.sqlite")
    assert last_decision(copied) == "the last decision"
    assert [path.name for path in mine.folder.glob("catalogue.sqlite*")] == ["catalogue.sqlite"]


def test_close_writes_the_log_to_the_file_while_others_have_it_open(mine, tmp_path):
    other = Catalogue(mine.folder)
    with mine.writing() as session:
        session.get(Encounter, 1).place = "the last decision"
    mine.close()
    assert (
        last_decision(shutil.copy(mine.folder / "catalogue.sqlite", tmp_path / "alone.sqlite")) == "the last decision"
    )
    with other.reading() as session:
        assert session.scalar(select(func.count(Decision.id))) == 0
    other.close()


# --- network shares


def test_network_share_is_noticed_and_a_disk_is_not(tmp_path, monkeypatch):
    table = "1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / /mnt/a\\040b rw shared:3 - {} //lab/x rw\n"
    for kind in ("nfs4", "cifs", "smb3", "fuse.sshfs"):
        assert mount_type("/mnt/a b/catalogue", table.format(kind)) == kind
        monkeypatch.setattr("happywhale_nb.core.shares.mount_type", lambda folder, text, kind=kind: kind)
        assert f"network share ({kind})" in share_line(tmp_path)
    for kind in ("ext4", "overlay", "tmpfs", "fuseblk", "btrfs", ""):
        monkeypatch.setattr("happywhale_nb.core.shares.mount_type", lambda folder, text, kind=kind: kind)
        assert share_line(tmp_path) == ""
    assert mount_type("/mnt/other", table.format("nfs")) == "ext4"


# --- copies of a catalogue in use


def test_backup_while_people_decide_has_every_photograph_that_its_rows_name(mine, colours, tmp_path):
    """Uploads and decisions go on all the time; each backup is one moment, and is restored as such."""
    ended, faults = threading.Event(), []

    def work(part):
        for seed in range(1000 * part, 1000 * part + 1000):
            if ended.is_set():
                return
            try:
                ingest_uploads(mine, colours, "Ann", [("a.png", photograph(10_000 + seed))])
            except Exception as error:
                faults.append(error)
                return

    threads = [threading.Thread(target=work, args=(part,)) for part in range(2)]
    for thread in threads:
        thread.start()
    manifests = [back_up(mine, tmp_path / "backup0")]
    while len(known(mine)) < 3 and not faults:
        time.sleep(0.01)
    manifests.append(back_up(mine, tmp_path / "backup1"))
    ended.set()
    for thread in threads:
        thread.join(60)
    assert not faults and not any(manifest.missing or manifest.changed for manifest in manifests)
    restored = restore(tmp_path / "backup1", tmp_path / "again")
    with restored.reading() as session:
        photos = session.scalars(select(Photo)).all()
        made = session.scalar(select(func.count(Decision.id)))
    assert made == sum(photo.kept for photo in photos) > 0
    assert all(content_digest(restored.path(photo)) == photo.sha256 for photo in photos)
    assert Matcher(restored).model.name == "colours" and len(photos) == 58 + made
    restored.close()


def test_restore_refuses_what_is_damaged_and_overwrites_nothing(mine, tmp_path):
    manifest, source = back_up(mine, tmp_path / "backup"), tmp_path / "backup"
    card = (mine.folder / "catalogue.json").read_bytes()
    for target in (mine.folder, tmp_path):
        with pytest.raises(UserError, match="overwrites nothing"):
            restore(source, target)
    assert (mine.folder / "catalogue.json").read_bytes() == card
    with pytest.raises(UserError, match="exists"):
        back_up(mine, source)
    with pytest.raises(UserError, match="in the catalogue itself"):
        back_up(mine, mine.folder / "photos" / "backup")
    name = next(name for name in manifest.files if name.startswith("data/train_images"))
    whole = (source / name).read_bytes()
    for spoilt in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1], None):
        (source / name).unlink()
        if spoilt is not None:
            (source / name).write_bytes(spoilt)
        assert len(check_backup(source)) == 1
        with pytest.raises(UserError, match=f"1 file of the backup .*{name}"):
            restore(source, tmp_path / "again")
        assert not (tmp_path / "again").exists() and not list(tmp_path.glob(".restore*"))
        (source / name).write_bytes(whole)
    restore(source, tmp_path / "again").close()
    strange = read_json(source / "manifest.json")
    for path in ("../x", "/etc/x", "catalogue/../../x", "other/x", "catalogue", "data\\..\\x", "data//x"):
        write_json(source / "manifest.json", strange | {"files": strange["files"] | {path: [0, ""]}})
        with pytest.raises(UserError, match="no path in a backup"):
            restore(source, tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_backup_names_what_is_missing_or_changed_and_can_leave_the_data_folder(mine, tiny_copy, tmp_path):
    mine.move_data(tiny_copy)
    photos = sorted((tiny_copy / "train_images").iterdir())
    photos[0].unlink()
    photos[1].write_bytes(photos[1].read_bytes() + b"\0")
    told = []
    manifest = back_up(mine, tmp_path / "whole", log=told.append)
    assert manifest.missing == (f"data/train_images/{photos[0].name}",)
    assert manifest.changed == (f"data/train_images/{photos[1].name}",)
    assert len(told) == 2 and "1 photograph not found" in told[0]
    told.clear()
    small = back_up(mine, tmp_path / "small", data=False, log=told.append)
    assert not any(name.startswith("data/") for name in small.files) and "not part of this backup" in told[0]
    restored = restore(tmp_path / "small", tmp_path / "again")
    assert restored.data == tiny_copy
    restored.close()


def test_commands_keep_a_catalogue(mine, tmp_path):
    mine.close()

    def run(*words):
        done = CliRunner().invoke(main, ["catalogue", *map(str, words)])
        return done.exit_code, done.output

    assert run("backup", mine.folder, tmp_path / "backup")[0] == 0
    assert "as written" in run("restore", tmp_path / "backup", "--dry-run")[1]
    assert run("restore", mine.folder, "E1", "--dry-run")[0] == 2
    assert not (tmp_path / "again").exists()
    code, told = run("restore", tmp_path / "backup", tmp_path / "again")
    assert code == 0 and "happywhale serve" in told
    assert run("tidy", tmp_path / "again", "--cache") == (0, "nothing to remove\n")
    code, told = run("check", tmp_path / "again", "--layout")
    assert code == 0 and "photographs of the data folder" in told and "cache 0.0 MB" in told
    code, told = run("restore", tmp_path / "backup", tmp_path / "again")
    assert code == 2 and told.count("\n") == 1 and "overwrites nothing" in told
    assert run("restore", tmp_path, tmp_path / "x")[0] == 2 == run("restore", tmp_path / "backup")[0]


def test_deleted_photograph_is_in_no_backup_and_one_sent_again_is_kept(mine, colours, tmp_path, monkeypatch):
    """Another request sends the same photograph between the commit of a deletion and the removal of the file."""
    first = ingest_uploads(mine, colours, "Ann", [("a.png", photograph(1))])
    with mine.writing() as session:
        withdraw_encounter(session, "Ann", first, 1, "boat")
    original = corrections.remove_unknown

    def late(catalogue, paths):
        ingest_uploads(mine, colours, "Bo", [("again.png", photograph(1))])
        return original(catalogue, paths)

    monkeypatch.setattr(corrections, "remove_unknown", late)
    corrections.delete_uploads(mine, "Ann", encounter=first)
    assert stored(mine) == [name for name in known(mine) if name] and len(stored(mine)) == 1
    manifest = back_up(mine, tmp_path / "backup")
    assert not manifest.missing and sum(name.startswith("catalogue/photos") for name in manifest.files) == 1


@pytest.mark.postgres
def test_backup_of_a_postgresql_catalogue_copies_files_and_names_pg_dump(tiny, colours, postgres, tmp_path):
    catalogue = create_catalogue(tmp_path / "pg", tiny, "pg", postgres())
    ingest_dataset(catalogue, colours, read_dataset(tiny), "colours")
    catalogue.choose_model(colours.fingerprint)
    ingest_uploads(catalogue, colours, "Ann", [("a.png", photograph(1))])
    with pytest.raises(UserError):
        ingest_uploads(catalogue, colours, "Ann", [("b.png", photograph(2)), ("a.png", photograph(1))])
    assert stored(catalogue) == known(catalogue) and tidy(catalogue).lines() == ["nothing to remove"]
    told = []
    manifest = back_up(catalogue, tmp_path / "backup", log=told.append)
    assert manifest.database == "postgresql" and "pg_dump" in told[0] and "pg8000" not in told[0]
    assert sum(name.startswith("catalogue/photos/") for name in manifest.files) == 1
    restored = restore(tmp_path / "backup", tmp_path / "again")
    assert stored(restored) == known(restored)
    for each in (catalogue, restored):
        each.close()


def test_question_in_progress_is_left_alone_and_leaves_nothing(mine, colours):
    stuck, codes = Stuck(colours), []
    with serving(mine, stuck) as ((host, port, *_), token):
        known = {"files": {"photos": ("fin.png", photograph(7))}, "headers": {"authorization": f"Bearer {token}"}}

        def send():
            codes.append(httpx.post(f"http://{host}:{port}/api/identify", timeout=60, **known).status_code)

        thread = threading.Thread(target=send)
        thread.start()
        assert stuck.reached.wait(30)
        told = tidy(mine, old=0)
        assert told.count == 0 and [path.name.split(".")[1] for path in told.left] == ["question"]
        stuck.go_on.set()
        thread.join(60)
    assert codes == [200] and not list(mine.folder.glob(".*"))
