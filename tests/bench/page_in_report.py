#!/usr/bin/env python3
"""Page-in beside the floors of the machine it runs on: runs page_in_bench and says how far each figure is from its target.

    tests/bench/page_in_report.py --directory DIR [--mib 512] [--rounds 5] [--work-us 10] [--json FILE] [--check]

All figures of a round come from one session, and the rounds are interleaved: each holds every measurement once. A ratio is made inside its
round; the report gives the median over the rounds and the range. --check ends with 1 when a target is missed.

Targets: what the project asks of page-in (docs/benchmarks.md). They are no test: a busy machine misses them.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
NEAR_FULL_SPEED = 0.95
SMOOTHED_STRETCHES = 4


def newest_program():
    found = sorted(
        ROOT.glob("build/*/tests/bench/page_in_bench"), key=lambda path: path.stat().st_mtime
    )
    if not found:
        sys.exit("page_in_bench is not built: cmake --preset release -DPAGEFERRY_BENCHMARKS=ON")
    return found[-1]


def full_speed(zipf):
    """Accesses in a stretch of time when every page is there."""
    return statistics.median(zipf["resident"][1:] or zipf["resident"])


def ms_to_full_speed(stretches, zipf):
    """From when on the workload keeps 95 % of the speed that it has with every page there: the end
    of the last row of stretches below it."""
    needed = NEAR_FULL_SPEED * full_speed(zipf)
    last_slow = 0
    for at in range(len(stretches) - SMOOTHED_STRETCHES + 1):
        if statistics.mean(stretches[at : at + SMOOTHED_STRETCHES]) < needed:
            last_slow = at + 1
    return max(last_slow, 1) * zipf["stretch_ms"]


def first_ms_at_full_speed(stretches, zipf):
    """When the workload reaches that speed first, for a stretch and the three behind it."""
    needed = NEAR_FULL_SPEED * full_speed(zipf)
    for at in range(len(stretches) - SMOOTHED_STRETCHES + 1):
        if statistics.mean(stretches[at : at + SMOOTHED_STRETCHES]) >= needed:
            return max(at, 1) * zipf["stretch_ms"]
    return len(stretches) * zipf["stretch_ms"]


def avoided(zipf, faults):
    return 1 - zipf[faults] / max(zipf["lazy_faults"], 1)


def sooner(zipf, measure):
    return measure(zipf["lazy"], zipf) / measure(zipf["recorded"], zipf)


# name, target as text, value of a round, whether it is met (None: only told)
ROWS = [
    ("bare loop, fault p50, us", "", lambda r: r["bare"]["p50_us"], None),
    ("bare loop, fault p99, us", "", lambda r: r["bare"]["p99_us"], None),
    ("page-in, fault p50, us", "", lambda r: r["lazy"]["p50_us"], None),
    ("page-in, fault p99, us", "", lambda r: r["lazy"]["p99_us"], None),
    ("fault p50 / bare", "<= 1.25", lambda r: r["lazy"]["p50_us"] / r["bare"]["p50_us"], lambda v: v <= 1.25),
    ("fault p99 / bare", "<= 2", lambda r: r["lazy"]["p99_us"] / r["bare"]["p99_us"], lambda v: v <= 2),
    ("p99 with prefetch / without", "<= 2", lambda r: r["loaded"]["p99_us"] / r["lazy"]["p99_us"], lambda v: v <= 2),
    ("p50 with prefetch / without", "", lambda r: r["loaded"]["p50_us"] / r["lazy"]["p50_us"], None),
    ("prefetch with faults / alone", ">= 0.70", lambda r: r["loaded_fill_gb_s"] / r["fill_gb_s"], lambda v: v >= 0.70),
    ("raw read, GB/s", "", lambda r: r["read_gb_s"], None),
    ("bare UFFDIO_COPY, GB/s", "", lambda r: r["copy_gb_s"], None),
    ("bare loop that reads and copies, GB/s", "", lambda r: r["bare_fill_gb_s"], None),
    ("fill, GB/s", "", lambda r: r["fill_gb_s"], None),
    ("fill / bare loop", "", lambda r: r["fill_gb_s"] / r["bare_fill_gb_s"], None),
    ("fill / min(read, copy)", ">= 0.85", lambda r: r["fill_gb_s"] / min(r["read_gb_s"], r["copy_gb_s"]), lambda v: v >= 0.85),
    ("new pager, start to first page, ms", "<= 200", lambda r: r["attach_ms"], lambda v: v <= 200),
    ("zipf: faults, lazy", "", lambda r: r["zipf"]["lazy_faults"], None),
    ("zipf: faults avoided by the record", ">= 0.97", lambda r: avoided(r["zipf"], "recorded_faults"), lambda v: v >= 0.97),
    ("  the same with another seed", "", lambda r: avoided(r["zipf"], "other_seed_faults"), None),
    ("zipf: lazy, ms until 95 % for good", "", lambda r: ms_to_full_speed(r["zipf"]["lazy"], r["zipf"]), None),
    ("zipf: recorded, ms until 95 % for good", "", lambda r: ms_to_full_speed(r["zipf"]["recorded"], r["zipf"]), None),
    ("  sooner by", ">= 3.7", lambda r: sooner(r["zipf"], ms_to_full_speed), lambda v: v >= 3.7),
    ("zipf: lazy, ms until 95 % first", "", lambda r: first_ms_at_full_speed(r["zipf"]["lazy"], r["zipf"]), None),
    ("zipf: recorded, ms until 95 % first", "", lambda r: first_ms_at_full_speed(r["zipf"]["recorded"], r["zipf"]), None),
    ("  sooner by", "", lambda r: sooner(r["zipf"], first_ms_at_full_speed), None),
]


def report(rounds):
    missed = 0
    print(f"{len(rounds)} rounds: median, range, target")
    for name, target, value, met in ROWS:
        values = sorted(value(one) for one in rounds)
        median = statistics.median(values)
        verdict = ""
        if met is not None:
            verdict = "met" if met(median) else "MISSED"
            missed += not met(median)
        print(f"{name:<40} {median:>9.2f}  {values[0]:.2f}..{values[-1]:.2f}  {target} {verdict}".rstrip())
    return missed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", help="on the store to be measured")
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work-us", type=int, default=10, help="between two accesses of the zipf workload")
    parser.add_argument("--json", type=Path, help="keeps the rounds there; without --directory, reads them")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.directory:
        command = [newest_program(), options.directory, options.mib, options.rounds, options.work_us]
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
        text = done.stdout
        if options.json:
            options.json.write_text(text)
    elif options.json:
        text = options.json.read_text()
    else:
        parser.error("--directory or --json")
    missed = report([json.loads(line) for line in text.splitlines()])
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
