"""Times named alternatives side by side: each in a process of its own, in turn, medians and peak memory in one table.

A benchmark is a script that fills `CASES`, a dict case → {who: prepare}, and calls `main(CASES)`. `prepare(quick)`
makes what is needed and returns the function to be timed, whose result (a number or a short text) goes into the table.
The first alternative of a case is the one the others are compared with. Machines are noisy: believe the ratios, and
only those of one run.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def work(prepare, quick, least_seconds=0.5, most=40):
    """Time one alternative in this process: seconds (median of up to `most` calls; `quick`: one), memory, result."""
    run = prepare(quick)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    while not times or (not quick and len(times) < most and sum(times) < least_seconds):
        began = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": statistics.median(times), "peak": peak / 1024, "more": (peak - before) / 1024, "result": result}


def in_process(case, who, quick):
    """`work` in a new process, so that peak memory is this alternative's own."""
    command = [sys.executable, sys.argv[0], "--case", case, "--who", who, *["--quick"] * quick]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{case}, {who}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(cases, given):
    """Time the alternatives of each case in turn; print and return the table's rows."""
    rows = []
    print("| case | who | median | times the first | memory, more | peak | result |\n|---|---|--:|--:|--:|--:|---|")
    for case, alternatives in cases.items():
        rounds = [
            {who: in_process(case, who, given.quick) for who in alternatives}
            for _ in range(1 if given.quick else given.rounds)
        ]
        first = next(iter(alternatives))
        for who in alternatives:
            last = rounds[-1][who]
            row = {
                "case": case,
                "who": who,
                "seconds": statistics.median(r[who]["seconds"] for r in rounds),
                "ratio": statistics.median(r[who]["seconds"] / r[first]["seconds"] for r in rounds),
                "more": round(last["more"]),
                "peak": round(last["peak"]),
                "result": last["result"],
            }
            rows.append(row)
            print(
                f"| {case} | {who} | {row['seconds']:.3g} s | {row['ratio']:.2f} | {row['more']} MB | {row['peak']} MB "
                f"| {row['result']} |",
                flush=True,
            )
    return rows


def keep(path, rows, rounds):
    """Write the rows into a file of results; rows of other cases stay."""
    from happywhale_nb.core.artifacts import read_json, versions, write_json

    cases = {row["case"] for row in rows}
    others = read_json(path)["results"] if path.is_file() else []
    facts = {"name": path.stem, "date": datetime.now(UTC).isoformat(timespec="seconds"), "rounds": rounds}
    facts |= {"cores": os.cpu_count(), "processor": processor(), "versions": versions("numpy")}
    write_json(path, facts | {"results": [row for row in others if row["case"] not in cases] + rows})


def processor():
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main(cases):
    """Run the cases named on the command line (all, if none), print the table as Markdown, and write it as JSON."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller inputs, one round: to see that it works")
    parser.add_argument("--rounds", type=int, default=3, help="how often the alternatives of a case take turns")
    parser.add_argument("--case", help="only this case")
    parser.add_argument("--to", type=Path, help="the file of results; without it docs/results, or none with --quick")
    parser.add_argument("--who", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.who:
        print(json.dumps(work(cases[given.case][given.who], given.quick)))
        return
    if given.case and given.case not in cases:
        parser.error(f"no case {given.case!r}; there are: {'; '.join(cases)}")
    rows = measured({case: who for case, who in cases.items() if given.case in (None, case)}, given)
    to = given.to or (None if given.quick else RESULTS / f"bench_{Path(sys.argv[0]).stem}.json")
    if to:
        keep(to, rows, 1 if given.quick else given.rounds)
