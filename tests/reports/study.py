"""Study files as people write them."""

from happywhale_nb.workflow.study import override, read_study, study_folders
from reports.harness import Case


def name_stays_as_it_is_written(reports, out):
    """`study: 007` is `outputs/007`, as with `-p study 007`, and `study: on` is `outputs/on`."""
    (out / "on.yaml").write_text((reports / "study_007.yaml").read_text().replace("007", "on"))
    for path, name in ((reports / "study_007.yaml", "007"), (out / "on.yaml", "on")):
        content = override(read_study(path), {"data_dir": str(reports / "data" / "boxes_first_missing")})
        assert study_folders(content)[1].name == name
    given = override(read_study(out / "on.yaml"), {"data_dir": content["data_dir"], "study": "007"})
    assert study_folders(given)[1].name == "007"


CASES = {
    "latin1_study.yaml": Case(
        "run R/latin1_study.yaml --dry-run",
        exit_code=2,
        words=["latin1_study.yaml, line 1: a study file is UTF-8 text: save it as UTF-8"],
    ),
    "study_007.yaml": name_stays_as_it_is_written,
}
