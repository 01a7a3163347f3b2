"""A PostgreSQL server that crashes under load, and connections that are cut between a statement and its commit."""

import itertools
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from sqlalchemy import event, func, select, text
from strangers import serving

from happywhale_nb.catalogue.ingest import ingest_dataset, recalibrate
from happywhale_nb.catalogue.schema import Decision, Encounter
from happywhale_nb.catalogue.store import create_catalogue
from happywhale_nb.data.dataset import read_dataset

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


@pytest.fixture
def catalogue(postgres, tiny, colours, tmp_path):
    made = create_catalogue(tmp_path / "pg", tiny, "tiny", postgres())
    ingest_dataset(made, colours, read_dataset(tiny), "colours")
    made.choose_model(colours.fingerprint)
    recalibrate(made)
    yield made
    made.close()


@contextmanager
def page_of(catalogue, colours):
    with serving(catalogue, colours) as ((host, port, *_), token):
        known = {"authorization": f"Bearer {token}"}
        with httpx.Client(base_url=f"http://{host}:{port}", headers=known, timeout=60) as client:
            while client.get("/api/health").json()["status"] != "ready":
                time.sleep(0.02)
            yield client


def encounters(catalogue):
    with catalogue.reading() as session:
        return session.execute(select(Encounter.id, Encounter.version).order_by(Encounter.id)).all()


def edit(page, met, version, place):
    """Change an encounter's place; returns the status, and the version that was acknowledged."""
    answer = page.patch(f"/api/encounters/{met}", json={"version": version, "place": place})
    told = answer.json() if "json" in answer.headers["content-type"] else {"detail": answer.text}
    return answer.status_code, told["version"] if answer.status_code == 200 else told["detail"]


def test_what_was_acknowledged_is_there_when_the_server_crashes_under_load(catalogue, colours, postgres):
    stop, told, codes = threading.Event(), {}, Counter()

    def work(page, met, version):
        for number in itertools.count():
            if stop.is_set():
                return
            place = f"bay {number}"
            status, answer = edit(page, met, version, place)
            codes[status] += 1
            if status == 200:
                version, told[met] = answer, (answer, place)
            elif status == 409:  # the answer to a change that was made got lost
                version = page.get(f"/api/encounters/{met}").json().get("version", version)
            else:
                assert status == 503 and "try again" in answer, (status, answer)
                time.sleep(0.05)

    with page_of(catalogue, colours) as page, ThreadPoolExecutor(6) as threads:
        working = [threads.submit(work, page, *each) for each in encounters(catalogue)[:6]]
        try:
            time.sleep(0.5)
            postgres.crash()
            time.sleep(0.5)
        finally:
            stop.set()
        for each in working:
            each.result(60)
        met, version = encounters(catalogue)[-1]
        assert edit(page, met, version, "after the storm")[0] == 200
        with catalogue.reading() as session:
            found = dict.fromkeys(told)
            for met in told:
                row = session.get(Encounter, met)
                found[met] = row.version, row.place
            lines = session.scalar(select(func.count()).select_from(Decision).where(Decision.kind == "edit"))
            changes = sum(version - 1 for version in session.scalars(select(Encounter.version)))
    assert codes[200] and codes[503], codes
    for met, (version, place) in told.items():
        assert found[met] >= (version, place) and found[met][0] <= version + 1, (
            "at most one more, whose answer got lost"
        )
    assert lines == changes, "each change has its line in the trail, and each line its change"


@pytest.mark.parametrize("moment", ["before_cursor_execute", "commit"])
def test_a_connection_cut_between_a_statement_and_its_commit_leaves_nothing(catalogue, colours, moment):
    cut, engine = [], catalogue.store.engine

    def kill(connection, *_):
        writes = connection.get_execution_options().get("writes")
        if cut or not writes or (moment == "before_cursor_execute" and "INSERT" not in str(_[1])):
            return
        cut.append(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar())
        with engine.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": cut[0]})
        time.sleep(0.2)

    with page_of(catalogue, colours) as page:
        met, version = encounters(catalogue)[0]
        event.listen(type(engine), moment, kill)
        try:
            status, answer = edit(page, met, version, "far away")
        finally:
            event.remove(type(engine), moment, kill)
        assert cut, "the connection was cut"
        assert status == 503 and "try again" in answer
        assert page.get(f"/api/encounters/{met}").json()["place"] != "far away"
        assert encounters(catalogue)[0] == (met, version)
        assert edit(page, met, version, "near")[0] == 200, "it goes on"
