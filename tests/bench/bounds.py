#!/usr/bin/env python3
"""The pager beside the floors of the machine it runs on: how far each figure is from what the project asks for.

    tests/bench/bounds.py --directory DIR [--mib 1024] [--rounds 5] [--json FILE] [--without-page-in] [--check]

DIR lies on the store to be measured. Runs page_out_bench (page-out, blackout, dirty tracking), crc32c_bench (checksum, zero pages) and, by
page_in_report.py, page_in_bench. A ratio is made inside a round, of runs behind each other; the report gives the median over the rounds and
their range. --check ends with 1 when a target is missed. The targets are no test: a busy machine misses them.

What is compared:
  page-out           a guest that stands still, first page to commit record, all of it durable; beside libaio writes with O_DIRECT out of the
                     same memory, 1 MiB each and 8 in flight, and an fdatasync. Of small and of 2 MiB pages, which the store's transfers are faster with
  blackout           64 MiB of scattered pages, collected, stored, and committed, all of it durable; beside a sequential write of as many bytes
                     over space that was written before, out of 2 MiB pages, and an fdatasync
  tracking           accesses of a thread that computes and writes 50 MiB/s over 256 MiB of the guest, with a collection each second, and without
                     tracking; by the page tables asynchronously, and as on kernels before 6.7
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import page_in_report

ROOT = Path(__file__).resolve().parent.parent.parent


def built(name):
    found = sorted(ROOT.glob(f"build/*/tests/bench/{name}"), key=lambda path: path.stat().st_mtime)
    if not found:
        sys.exit(f"{name} is not built: cmake --preset release -DPAGEFERRY_BENCHMARKS=ON")
    return found[-1]


def output_of(*command):
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def google_benchmark(repetitions):
    """Bytes per second of each benchmark: one figure for each repetition."""
    text = output_of(
        built("crc32c_bench"),
        "--benchmark_format=json",
        f"--benchmark_repetitions={repetitions}",
        "--benchmark_min_time=0.2",
    )
    speeds = {}
    for run in json.loads(text)["benchmarks"]:
        if run["run_type"] == "iteration":
            speeds.setdefault(run["run_name"], []).append(run["bytes_per_second"])
    return speeds


def lost(memory, how):
    """The share of the guest's accesses that tracking takes, percent."""
    return lambda r: 100 * (1 - r["tracking"][memory][how] / r["tracking"][memory]["untracked"])


def collection(memory, how):
    return lambda r: r["tracking"][memory][how + "_collect_ms"] / r["tracking"]["gib"]


def at_least(limit):
    return f">= {limit}", lambda value: value >= limit


def at_most(limit):
    return f"<= {limit}", lambda value: value <= limit


TOLD = "", None

# name, value of a round, target
ROWS = [
    ("raw write out of huge pages, GB/s", lambda r: r["huge"]["raw_write_gb_s"], TOLD),
    ("page-out, huge pages, GB/s", lambda r: r["huge"]["page_out_gb_s"], TOLD),
    ("page-out / raw, huge pages", lambda r: r["huge"]["page_out_gb_s"] / r["huge"]["raw_write_gb_s"], at_least(0.9)),
    ("raw write out of small pages, GB/s", lambda r: r["small"]["raw_write_gb_s"], TOLD),
    ("page-out, small pages, GB/s", lambda r: r["small"]["page_out_gb_s"], TOLD),
    ("page-out / raw, small pages", lambda r: r["small"]["page_out_gb_s"] / r["small"]["raw_write_gb_s"], at_least(0.9)),
    ("  with map and tail, small pages", lambda r: r["small"]["written_gb_s"] / r["small"]["raw_write_gb_s"], TOLD),
    ("raw sequential write of 64 MiB, ms", lambda r: r["raw_blackout_ms"], TOLD),
    ("blackout of 64 MiB, ms", lambda r: r["blackout_ms"], TOLD),
    ("blackout / raw", lambda r: r["blackout_ms"] / r["raw_blackout_ms"], at_most(1.25)),
    ("tracking takes, anonymous, %", lost("anonymous", "async"), at_most(5)),
    ("tracking takes, memfd, %", lost("memfd", "async"), at_most(5)),
    ("  before 6.7, anonymous, %", lost("anonymous", "sync"), TOLD),
    ("  before 6.7, memfd, %", lost("memfd", "sync"), TOLD),
    ("collection, anonymous, ms/GiB", collection("anonymous", "async"), at_most(5)),
    ("collection, memfd, ms/GiB", collection("memfd", "async"), at_most(5)),
    ("  before 6.7, anonymous, ms/GiB", collection("anonymous", "sync"), TOLD),
    ("  before 6.7, memfd, ms/GiB", collection("memfd", "sync"), TOLD),
]
SPEED_ROWS = [
    ("crc32c, GB/s", "crc32c_of_pages", at_least(5)),
    ("zero pages found, GB/s", "zero_check_of_zero_pages", at_least(10)),
]


def tell(name, values, target):
    """Prints a row. Returns whether its target is missed."""
    text, met = target
    values = sorted(values)
    median = statistics.median(values)
    verdict = "" if met is None else "met" if met(median) else "MISSED"
    print(f"{name:<40} {median:>9.2f}  {values[0]:.2f}..{values[-1]:.2f}  {text} {verdict}".rstrip())
    return verdict == "MISSED"


def report(rounds, speeds):
    print(f"{len(rounds)} rounds: median, range, target")
    missed = sum(tell(name, [value(one) for one in rounds], target) for name, value, target in ROWS)
    for name, benchmark, target in SPEED_ROWS:
        missed += tell(name, [speed / 1e9 for speed in speeds[benchmark]], target)
    return missed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", required=True, help="on the store to be measured")
    parser.add_argument("--mib", type=int, default=1024, help="size of the guest that is paged out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="that the tracked guest writes, each time")
    parser.add_argument("--json", type=Path, help="keeps the figures of each round there")
    parser.add_argument("--without-page-in", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = output_of(
        built("page_out_bench"), options.directory, options.mib, options.rounds, options.seconds
    )
    rounds = [json.loads(line) for line in text.splitlines()]
    figures = {"page_out": rounds, "speeds": google_benchmark(options.rounds)}
    missed = report(rounds, figures["speeds"])
    if not options.without_page_in:
        text = output_of(built("page_in_bench"), options.directory, 512, options.rounds, 20)
        figures["page_in"] = [json.loads(line) for line in text.splitlines()]
        missed += page_in_report.report(figures["page_in"])
    if options.json:
        options.json.write_text(json.dumps(figures))
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
