"""Break the project on purpose, one fault at a time, and record which tests notice.

    python tests/mutation/run.py map           # once: which test runs which line (the whole suite under coverage)
    python tests/mutation/run.py run           # each fault of mutants.json against the tests that run its lines
    python tests/mutation/run.py all           # those not noticed, all made at once, against `make test`
    python tests/mutation/run.py table         # the results by module

A fault stands in `mutants.json` as the text before and after, and is made in the module and in its notebook, so that
lessons meet it too. Forty-six were drawn with a seed from those that cosmic-ray 8.7 makes of the modules named there,
ten were written by hand. Results go to `--out` after each fault: on the same commit an interrupted run goes on.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FIRST, MORE = 25, 40  # seconds of tests that are all run; of those that are run up to the first that fails


def read_mutants():
    """The faults, a list of dicts: id, module, notebook, operator, before, after."""
    return json.loads((HERE / "mutants.json").read_text(encoding="utf-8"))


def make(tree, mutant):
    """Make a fault in the module and in the notebook of the copy `tree`."""
    module = tree / "happywhale_nb" / f"{mutant['module'].replace('.', '/')}.py"
    text = module.read_text(encoding="utf-8")
    if text.count(mutant["before"]) != 1:
        raise SystemExit(f"{mutant['id']}: its text stands {text.count(mutant['before'])} times in {module.name}")
    module.write_text(text.replace(mutant["before"], mutant["after"]), encoding="utf-8")
    path = tree / mutant["notebook"]
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and mutant["before"].rstrip("\n") in source:
            cell["source"] = source.replace(mutant["before"].rstrip("\n"), mutant["after"].rstrip("\n"))
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_tree(tree, target):
    """A copy of what git tracks in `tree`."""
    shutil.rmtree(target, ignore_errors=True)
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=tree, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        if (tree / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, target / name)
    for words in (["init", "-q"], ["add", "-A"]):  # some tests ask git which files there are
        subprocess.run(["git", *words], cwd=target, check=True)
    return target


def environment(tree):
    """Variables under which every process takes the package of `tree`."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("COV", "PYTEST"))}
    return variables | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}


def pytest(tree, words, seconds):
    """Run pytest in `tree`. Returns the ids of the tests that failed, or "timeout" among them."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", *words]
    try:
        done = subprocess.run(command, cwd=tree, env=environment(tree), capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return ["timeout"]
    failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.M)
    if done.returncode not in (0, 1) and not failed:
        failed = [f"pytest ended with {done.returncode}"]
    return failed


# --- which test runs which line ---------------------------------------------------------------------------------------


def collect(tree, scratch):
    """Run `make test` of `tree` under coverage. Returns the file of coverage and that of the tests' seconds."""
    data, junit = scratch / "coverage", scratch / "tests.xml"
    scratch.mkdir(parents=True, exist_ok=True)
    words = ["-n", "2", "--dist", "worksteal", "-m", "not rest", f"--junitxml={junit}"]
    words += [f"--cov={tree / 'happywhale_nb'}", "--cov-context=test", "--cov-report="]
    command = [sys.executable, "-m", "pytest", "-q", *words]
    subprocess.run(command, cwd=tree, env=environment(tree) | {"COVERAGE_FILE": str(data)}, check=True)
    return data, junit


def make_map(tree, data, junit, out):
    """Write `out`: for each fault the tests that run its lines, quickest first, with their seconds.

    data: a coverage file with the tests as contexts; junit: the seconds of the tests."""
    from coverage import CoverageData

    seconds = {}
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        name = case.get("classname", "").replace(".", "/") + ".py::" + case.get("name", "")
        seconds[name] = float(case.get("time", 0))
    longest = defaultdict(float)  # of a file: any of its tests may have to set up what all share
    for name, spent in seconds.items():
        longest[name.split("::")[0]] = max(longest[name.split("::")[0]], spent)
    longest["tests/test_lessons.py"] = 0
    seconds = {name: spent + longest[name.split("::")[0]] for name, spent in seconds.items()}
    held = CoverageData(str(data))
    held.read()
    result = {}
    for mutant in read_mutants():
        module = tree / "happywhale_nb" / f"{mutant['module'].replace('.', '/')}.py"
        text = module.read_text(encoding="utf-8")
        start = text[: text.index(mutant["before"])].count("\n") + 1
        lines = range(start, start + mutant["before"].rstrip("\n").count("\n") + 1)
        by_line = held.contexts_by_lineno(str(module))
        contexts = {c for line in lines for c in by_line.get(line, ()) if c}
        if not contexts:  # run at import alone
            contexts = {c for found in by_line.values() for c in found if c}
        tests = {
            re.sub(r"(\|(setup|run|teardown)| \((setup|call|teardown)\))$", "", c.split("|tests/")[0]) for c in contexts
        }
        tests = {name for name in tests if name in seconds}
        lesson = f"[{mutant['notebook'].removeprefix('nbs/').removesuffix('.ipynb')}]"
        own = {name for name in seconds if name.startswith("tests/test_lessons.py") and name.endswith(lesson)}
        order = [*own, *sorted(tests - own, key=seconds.get)]
        result[mutant["id"]] = {name: seconds[name] for name in order}
    Path(out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


# --- the run ----------------------------------------------------------------------------------------------------------


def try_mutant(base, place, mutant, tests):
    """Run the tests of one fault in a copy at `place`. Returns its row of the results."""
    tree, begun = copy_tree(base, place), time.monotonic()
    make(tree, mutant)
    cost, first, more = 0.0, [], []
    for name, seconds in tests.items():
        cost += seconds
        if not first or cost <= FIRST:
            first.append(name)
        elif cost <= FIRST + MORE:
            more.append(name)
    failed = pytest(tree, first, 12 * FIRST)  # a fault may make a test run for ever
    if not failed and more:
        failed = [name for name in pytest(tree, ["-x", *more], 6 * MORE) if name != "timeout"]
    shutil.rmtree(tree, ignore_errors=True)
    row = {name: mutant[name] for name in ("id", "module", "operator")}
    return row | {"tests": len(tests), "noticed_by": failed, "seconds": round(time.monotonic() - begun, 1)}


def read_results(out, tree):
    """What `out` has of the commit of `tree`; nothing if it is of another one."""
    words = ["git", "-C", tree, "rev-parse", "HEAD"]
    commit = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    return found if found.get("commit") == commit else {"commit": commit, "faults": {}}


def run(base, tests, out, scratch, workers, only=()):
    """Try every fault that `out` does not have yet, `workers` at a time."""
    results = read_results(out, base)
    found, places = results["faults"], Queue()
    for number in range(workers):
        places.put(scratch / f"copy{number}")

    def one(mutant):
        place = places.get()
        try:
            found[mutant["id"]] = try_mutant(base, place, mutant, tests[mutant["id"]])
        finally:
            places.put(place)
        results["faults"] = dict(sorted(found.items()))
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(mutant["id"], mutant["module"], found[mutant["id"]]["noticed_by"][:3], flush=True)

    left = [m for m in read_mutants() if m["id"] not in found and (not only or m["id"] in only)]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, left))


def run_all(base, out, scratch):
    """Make all faults that nobody noticed at once, run the whole of `make test`, and keep which tests fail then.

    Each of them points to its fault by what it tests; if none does, the faults are not noticed."""
    results = json.loads(out.read_text(encoding="utf-8"))
    left = [m for m in read_mutants() if not results["faults"][m["id"]]["noticed_by"]]
    tree = copy_tree(base, scratch / "all")
    for mutant in left:
        make(tree, mutant)
    failed = pytest(tree, ["-n", "2", "--dist", "worksteal", "-m", "not rest"], 3600)
    results["all at once"] = {"made": [mutant["id"] for mutant in left], "failed": failed}
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(*failed, sep="\n")


def table(out):
    """Print how many faults were noticed, by module."""
    found, rows = json.loads(out.read_text(encoding="utf-8"))["faults"], defaultdict(lambda: [0, 0])
    for row in found.values():
        rows[row["module"]][0] += bool(row["noticed_by"])
        rows[row["module"]][1] += 1
    for module, (noticed, made) in sorted(rows.items()):
        print(f"| {module} | {noticed} of {made} |")
    print(f"| all | {sum(n for n, _ in rows.values())} of {sum(m for _, m in rows.values())} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("map", "run", "all", "table"))
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout to break (copies of it)")
    parser.add_argument("--data", type=Path, help="map: a coverage file, if there is one already")
    parser.add_argument("--junit", type=Path, help="map: pytest's XML beside it")
    parser.add_argument("--map", type=Path, default=ROOT / "outputs" / "mutation" / "map.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "mutations.json")
    parser.add_argument("--scratch", type=Path, default=ROOT / "outputs" / "mutation")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=())
    given = parser.parse_args()
    if given.step == "map":
        data, junit = (given.data, given.junit) if given.data else collect(given.tree, given.scratch)
        make_map(given.tree, data, junit, given.map)
    elif given.step == "table":
        table(given.out)
    elif given.step == "all":
        run_all(given.tree, given.out, given.scratch)
    else:
        tests = json.loads(given.map.read_text(encoding="utf-8"))
        run(given.tree, tests, given.out, given.scratch, given.workers, given.only)


if __name__ == "__main__":
    main()
