#!/usr/bin/env python3
"""The size of a guest does not decide how long it is stopped: a small and a large one with the same
dirty set, side by side.

    tests/soak/size_ratio.py [--runs 5] [--qemu 10|7.2] [--small 512] [--large 4096] [--store DIR]

Both guests fill 70 % of their memory and dirty 50 MiB/s over 64 MiB. Interleaved, fresh guests,
medians, memory ready for the destination (harness/backed_memory.py). Two figures must differ by less than LIMIT: the downtime (silence of the heartbeats around
the switch) and the time to run (STOP event at the source -> RESUME event at the destination). Ends
with 1 if one does not.

A run around whose switch the machine itself stood still for more than STOPPED_MS_MAX
(harness/machine_stops.py) is made again, whatever the size, at most twice, and printed.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "harness"))
import ferry  # noqa: E402
import heartbeats  # noqa: E402
import machine  # noqa: E402
from backed_memory import BackedMemory  # noqa: E402
from event_recorder import EventRecorder  # noqa: E402
from machine_stops import MachineStops, undisturbed_run  # noqa: E402
from pf_guest import Config, Guest  # noqa: E402

LIMIT = 1.3
STOPPED_MS_MAX = 10
_AROUND_S = 0.3


def one(memory_mib, arguments):
    config = Config(
        version=arguments.qemu,
        memory_mib=memory_mib,
        fill_mib=memory_mib * 7 // 10,
        dirty_mib_s=50,
        dirty_ws_mib=64,
    )
    store = Path(tempfile.mkdtemp(prefix="pageferry-soak-", dir=arguments.store))
    try:
        with tempfile.TemporaryDirectory(prefix="pf-soak-") as directory, Guest(
            config, directory
        ) as guest:
            guest.wait_ready()
            with MachineStops() as stops, BackedMemory(
                memory_mib + 256
            ) as backed, EventRecorder(guest) as recorder:
                time.sleep(1)
                backed.release_as_taken()
                outcome = ferry.migrate(guest, store)
                if outcome.code != 0:
                    raise SystemExit(f"{memory_mib} MiB: {outcome.explain()}\n{guest.qemu_log()}")
                resume = recorder.wait("RESUME", outcome.started, 10)[0]
                stop = recorder.times("STOP", outcome.started)[0][0]
                stopped_ms = stops.ms_per_cpu(stop - _AROUND_S, resume + _AROUND_S)
            last = guest.follower.snapshot()[-1]
            guest.follower.wait_beat(lambda beat: beat.counter > last.counter + 50, 30)
            wrong = guest.verdict()
            if wrong:
                raise SystemExit(f"{memory_mib} MiB: {wrong}")
            silence = heartbeats.silence_around_s(guest.follower.snapshot(), stop, resume)
            return {
                "downtime": 1000 * silence,
                "time to run": 1000 * (resume - stop),
                "stopped-ms": stopped_ms,
            }
    finally:
        shutil.rmtree(store)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--qemu", choices=("10", "7.2"), default="10")
    parser.add_argument("--small", type=int, default=512)
    parser.add_argument("--large", type=int, default=4096)
    parser.add_argument(
        "--store", default="/var/tmp", help="a directory in which stores are made for the test"
    )
    arguments = parser.parse_args()
    machine.prepare()
    sizes = (arguments.small, arguments.large)
    results = {size: [] for size in sizes}
    for number in range(arguments.runs):
        for size in sizes:
            label = f"{number + 1}/{arguments.runs} {size} MiB"
            results[size].append(
                undisturbed_run(label, STOPPED_MS_MAX, [], lambda: one(size, arguments))
            )
    failed = False
    for figure in ("downtime", "time to run"):
        small, large = (statistics.median(run[figure] for run in results[size]) for size in sizes)
        ratio = max(small, large) / min(small, large)
        failed = failed or ratio >= LIMIT
        print(
            f"{'ok  ' if ratio < LIMIT else 'FAIL'} {figure}: {small:.0f} ms and {large:.0f} ms, ratio {ratio:.2f}, limit {LIMIT}"
        )
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
