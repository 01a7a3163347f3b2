"""Times named alternatives side by side: each in a process of its own, in turn, medians and peak memory in one table.

A benchmark is a script that fills `CASES`, a dict case → {who: prepare}, and calls `main(CASES)`. `prepare(quick)`
makes what is needed and returns the function to be timed, whose result (a number or a short text) goes into the table.
The first alternative of a case is the one the others are compared with. Machines are noisy: believe the ratios, and
only those of one run.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time


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


def main(cases):
    """Run the cases named on the command line (all, if none), and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller inputs, one round: to see that it works")
    parser.add_argument("--rounds", type=int, default=3, help="how often the alternatives of a case take turns")
    parser.add_argument("--case", help="only this case")
    parser.add_argument("--who", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.who:
        print(json.dumps(work(cases[given.case][given.who], given.quick)))
        return
    if given.case and given.case not in cases:
        parser.error(f"no case {given.case!r}; there are: {'; '.join(cases)}")
    print("| case | who | median | times the first | memory, more | peak | result |\n|---|---|--:|--:|--:|--:|---|")
    for case, alternatives in cases.items():
        if given.case in (None, case):
            rounds = [
                {who: in_process(case, who, given.quick) for who in alternatives}
                for _ in range(1 if given.quick else given.rounds)
            ]
            first = next(iter(alternatives))
            for who in alternatives:
                seconds = statistics.median(r[who]["seconds"] for r in rounds)
                ratio = statistics.median(r[who]["seconds"] / r[first]["seconds"] for r in rounds)
                last = rounds[-1][who]
                print(
                    f"| {case} | {who} | {seconds:.3g} s | {ratio:.2f} | {last['more']:.0f} MB | {last['peak']:.0f} MB "
                    f"| {last['result']} |",
                    flush=True,
                )
