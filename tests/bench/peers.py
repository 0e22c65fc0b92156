#!/usr/bin/env python3
"""pageferry beside QEMU's own methods: the same guest, the same machine, one session, interleaved.

    tests/bench/peers.py [--runs 9] [--methods precopy-tcp,pageferry,...] [--store DIR]
                         [--json FILE] [--check] [--cold-memory] [--stopped-ms-max 100]
                         [--memory-mib 2048 --fill-mib 1433 --dirty-mib-s 50 --ws-mib 256]

Every run boots a fresh guest (so that no method inherits what another did to the memory), lets it
run, moves it once, watches it for 5 s, and asks it for its verdict: a run with a bad page or a lost
heartbeat ends the benchmark. The memory that the destination will take is made ready beforehand, for
all methods alike (harness/backed_memory.py says why); --cold-memory leaves it as the machine has it. The source's
QEMU is ended when all is measured, for all methods alike: it would be another host's work. One round goes through all methods, then the next begins, in turned
order; so what else happens on the machine meets all methods alike. measure.py defines every figure,
methods.py says how each method is run. raw-write/raw-read are the storage's O_DIRECT speed,
measured in every round.

stopped-ms says how long the machine itself stood still during a run (harness/machine_stops.py). A run in
which that is more than --stopped-ms-max is made again, whatever the method, at most twice; it is printed
and kept in the JSON file as "disturbed", and does not count.

--check compares the medians with the bounds that the project has set itself and ends with 1 if one
is missed.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "harness"))
import machine  # noqa: E402
import measure  # noqa: E402
import methods  # noqa: E402
import raw_disk  # noqa: E402
from backed_memory import BackedMemory  # noqa: E402
from event_recorder import EventRecorder  # noqa: E402
from machine_stops import MachineStops, undisturbed_run  # noqa: E402
from pf_guest import Config, Guest  # noqa: E402


def one_run(name, config, store_root, backed_mib):
    """Boots, moves, watches, judges. Returns the figures."""
    _, method = methods.METHODS[name]
    store = Path(tempfile.mkdtemp(prefix="pageferry-bench-", dir=store_root))
    try:
        with tempfile.TemporaryDirectory(prefix="pf-bench-") as directory, Guest(
            config, directory
        ) as guest:
            guest.wait_ready()
            with EventRecorder(guest) as recorder, measure.SpaceSampler(
                store
            ) as space, MachineStops() as stops, BackedMemory(backed_mib) as backed:
                measure.settle(guest)
                backed.release_as_taken()
                move = method(guest, store, recorder)
                if name.startswith("thrown-away"):
                    stopped_ms = stops.ms_per_cpu(move.started, move.evicted)
                    return {"eviction-s": move.evicted - move.started, "stopped-ms": stopped_ms}
                recorder.wait("RESUME", move.started, 30)
                time.sleep(measure.AFTER_S + 0.2)
            wrong = guest.verdict()
            if wrong:
                raise SystemExit(f"{name}: the guest is not well: {wrong}\n{guest.qemu_log()}")
            figures = measure.figures(guest, move, recorder, space.largest)
            until = max(move.resident, recorder.times("RESUME", move.started)[-1][0] + measure.AFTER_S)
            figures["stopped-ms"] = stops.ms_per_cpu(move.started, until)
            return figures
    finally:
        shutil.rmtree(store)


def summary(runs):
    """Median, smallest and largest of each figure."""
    result = {}
    for figure in measure.FIGURES:
        values = [run[figure] for run in runs if figure in run]
        if values:
            result[figure] = {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
                "n": len(values),
            }
    return result


def print_table(summaries):
    print(f"\n{'median (min-max)':18}" + "".join(f"{figure:>22}" for figure in measure.FIGURES))
    for name, figures in summaries.items():
        cells = []
        for figure in measure.FIGURES:
            value = figures.get(figure)
            digits = (
                2
                if figure.endswith("-s")
                and not figure.endswith("mib-s")
                and "hb" not in figure
                and "work" not in figure
                else 0
            )
            cells.append(
                f"{value['median']:.{digits}f} ({value['min']:.{digits}f}-{value['max']:.{digits}f})"
                if value
                else "-"
            )
        print(f"{name:18}" + "".join(f"{cell:>22}" for cell in cells))


def bounds(summaries, raw_write, raw_read):
    """(what, measured, bound, holds) for each bound whose figures were measured."""

    def median(method, figure):
        return summaries.get(method, {}).get(figure, {}).get("median")

    rows = []

    def row(what, measured, bound, holds):
        if measured is not None and bound is not None:
            rows.append((what, measured, bound, holds(measured, bound)))

    def at_most(a, b):
        return a <= b

    def at_least(a, b):
        return a >= b

    ours = "pageferry"
    stored = median(ours, "storage-mib")
    thrown = median("thrown-away", "eviction-s")
    if stored and thrown:
        row(
            "eviction s <= 1.15 x slower of (a) thrown away (b) raw write",
            median(ours, "eviction-s"),
            1.15 * max(thrown, stored / raw_write),
            at_most,
        )
    tcp = median("precopy-tcp", "downtime-ms")
    row(
        "downtime ms <= precopy over loopback + 30",
        median(ours, "downtime-ms"),
        tcp + 30 if tcp else None,
        at_most,
    )
    mapped = median("mapped-ram", "downtime-ms")
    row(
        "downtime ms < mapped-ram / 10",
        median(ours, "downtime-ms"),
        mapped / 10 if mapped else None,
        at_most,
    )
    row("heartbeats first second %", median(ours, "hb-1s"), 90, at_least)
    row("heartbeats first 5 s %", median(ours, "hb-5s"), 98, at_least)
    row("work first second %", median(ours, "work-1s"), 85, at_least)
    row("longest silence after RESUME ms", median(ours, "silence-ms"), 60, at_most)
    postcopy = median("postcopy-preempt", "resident-mib-s")
    row(
        "resident MiB/s >= 85 % of slower of raw read and postcopy",
        median(ours, "resident-mib-s"),
        0.85 * min(raw_read, postcopy) if postcopy else None,
        at_least,
    )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--methods", default=",".join(methods.METHODS))
    parser.add_argument("--store", default="/var/tmp", help="a directory on the storage to measure")
    parser.add_argument("--json", help="write all runs and the summary to this file")
    parser.add_argument("--check", action="store_true")
    parser.add_argument(
        "--cold-memory", action="store_true", help="do not make the destination's memory ready"
    )
    parser.add_argument(
        "--stopped-ms-max",
        type=float,
        default=100,
        help="a run during which the machine stood still for longer is made again",
    )
    parser.add_argument("--memory-mib", type=int, default=2048)
    parser.add_argument("--fill-mib", type=int, default=1433)
    parser.add_argument("--dirty-mib-s", type=int, default=50)
    parser.add_argument("--ws-mib", type=int, default=256)
    arguments = parser.parse_args()
    names = arguments.methods.split(",")
    unknown = [name for name in names if name not in methods.METHODS]
    if unknown:
        parser.error(f"unknown methods {unknown}; there are {list(methods.METHODS)}")
    machine.prepare()

    backed_mib = 0 if arguments.cold_memory else arguments.memory_mib + 256
    runs = {name: [] for name in names}
    disturbed = {name: [] for name in names}
    raw = []
    for number in range(arguments.runs):
        raw.append(raw_disk.speeds(arguments.store))
        turned = names[number % len(names) :] + names[: number % len(names)]
        for name in turned:
            version, _ = methods.METHODS[name]
            config = Config(
                version=version,
                memory_mib=arguments.memory_mib,
                fill_mib=arguments.fill_mib,
                dirty_mib_s=arguments.dirty_mib_s,
                dirty_ws_mib=arguments.ws_mib,
            )
            runs[name].append(
                undisturbed_run(
                    f"{number + 1}/{arguments.runs} {name}",
                    arguments.stopped_ms_max,
                    disturbed[name],
                    partial(one_run, name, config, arguments.store, backed_mib),
                )
            )

    summaries = {name: summary(values) for name, values in runs.items()}
    raw_write, raw_read = (statistics.median(column) for column in zip(*raw))
    print_table(summaries)
    made_again = {name: len(values) for name, values in disturbed.items() if values}
    print(f"made again because the machine stood still: {made_again or 'none'}")
    print(f"raw O_DIRECT: write {raw_write:.0f} MiB/s, read {raw_read:.0f} MiB/s")
    rows = bounds(summaries, raw_write, raw_read)
    for what, measured, bound, holds in rows:
        print(f"{'ok    ' if holds else 'MISSED'} {what}: {measured:.4g}, bound {bound:.4g}")
    if arguments.json:
        where = {
            "kernel": platform.release(),
            "cpus": os.cpu_count(),
            "accelerator": machine.accelerator("10"),
            "max-downtime-ms": methods.MAX_DOWNTIME_MS,
            **vars(arguments),
        }
        Path(arguments.json).write_text(
            json.dumps(
                {
                    "machine": where,
                    "runs": runs,
                    "disturbed": disturbed,
                    "summary": summaries,
                    "raw": {"write": raw_write, "read": raw_read},
                },
                indent=1,
            )
        )
    if arguments.check and not all(holds for *_, holds in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
