"""What the server does with names and dates of the kinds that people type."""

from contextlib import contextmanager

from fastapi.testclient import TestClient

from happywhale_nb.catalogue.example import example_catalogue
from happywhale_nb.server.app import make_app
from happywhale_nb.server.state import AppState, Options


@contextmanager
def served(out):
    """A client of a server with a catalogue of drawn photographs."""
    catalogue, embedder = example_catalogue(out)
    state = AppState(catalogue, Options(tokens=False), owner="Ann")
    state.network.open(lambda: embedder)
    with TestClient(make_app(state), base_url="http://127.0.0.1") as page:
        yield page
    catalogue.close()


def waiting(page):
    return page.get("/api/encounters", params={"state": "undecided"}).json()["encounters"]


def name_it(page, name):
    """Decide that the first encounter that waits is a new individual of this name."""
    met = waiting(page)[0]
    body = {"kind": "new", "version": met["version"], "name": name, "species": "humpback_whale"}
    return page.post(f"/api/encounters/{met['id']}/decisions", json=body)


def names_of(page):
    return {each["name"] for each in page.get("/api/individuals", params={"limit": 200}).json()["individuals"]}


def twins_are_asked_back(reports, out):
    with served(out) as page:
        for name in ("BD-0001", "Zoë"):
            assert name_it(page, name).status_code == 200
        before, waits = names_of(page), len(waiting(page))
        for name, meant in (("bd-0001", "BD-0001"), ("zoë", "Zoë"), ("Zoe\u0308", "Zoë"), ("BD-0001", "BD-0001")):
            asked = name_it(page, name)
            assert asked.status_code == 409, asked.json()
            assert asked.json()["individual"]["name"] == meant
            assert f"do you mean {meant}?" in asked.json()["detail"]
        assert names_of(page) == before and len(waiting(page)) == waits == 2, "nothing was decided"
        (meant,) = (each for each in page.get("/api/individuals", params={"q": "ZOË"}).json()["individuals"])
        met = waiting(page)[0]
        body = {"kind": "confirm", "individual_id": meant["id"], "version": met["version"]}
        done = page.post(f"/api/encounters/{met['id']}/decisions", json=body).json()
        assert done["encounter"]["individual"]["name"] == "Zoë", "the question is answered with yes"


def placeholders_are_refused(reports, out):
    with served(out) as page:
        before, animal = names_of(page), page.get("/api/individuals").json()["individuals"][0]
        for name in ("unknown", "NA", "N/A", "new_individual", "new_whale", "#REF!", "?", "Unk", "none"):
            refused = name_it(page, name)
            assert refused.status_code == 400 and "names nobody" in refused.json()["detail"]
            renamed = page.patch(f"/api/individuals/{animal['id']}", json={"name": name})
            assert renamed.status_code == 400 and "names nobody" in renamed.json()["detail"]
        assert names_of(page) == before and len(waiting(page)) == 4
        for name in ("Zoë 07", "Nº 12", "O'Brien"):
            assert name_it(page, f" {name} ").json()["encounter"]["individual"]["name"] == name


def dates_have_one_form(reports, out):
    with served(out) as page:
        met = waiting(page)[0]
        url, version = f"/api/encounters/{met['id']}", met["version"]
        kept = {"20190713": "2019-07-13", "2019-W28-6": "2019-07-13", "13/07/2019": "2019-07-13"}
        kept |= {"２０１９-07-14": "2019-07-14", "2019-07-13x14:05": None, "2019-W28": None, "31/02/2019": None}
        kept |= {"07/08/2019": None, "2131-01-01": None, "0000:00:00": "", "2019-07": "2019-07"}
        for text, date in kept.items():
            got = page.patch(url, json={"version": version, "date": text})
            if date is None:
                assert got.status_code == 400 and "date" in got.json()["detail"], text
            else:
                assert got.json()["date"] == date, text
                version = got.json()["version"]
        page.patch(url, json={"version": version, "date": "20190713"})
        for since in ("2019-07-13", "20190713", "2019-07"):
            found = page.get("/api/encounters", params={"since": since, "until": "2019-W28-7"}).json()
            assert [each["id"] for each in found["encounters"]] == [met["id"]]
        refused = page.get("/api/encounters", params={"since": "07/08/2019"})
        assert refused.status_code == 400 and "can be two days" in refused.json()["detail"]


CASES = {
    "decide new with the name bd-0001": twins_are_asked_back,
    "decide new with the name unknown": placeholders_are_refused,
    "an encounter with the date 20190713": dates_have_one_form,
}
