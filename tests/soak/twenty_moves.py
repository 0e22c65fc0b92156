#!/usr/bin/env python3
"""One guest moves N times in a row, each time from the QEMU that the last move left it in.

    tests/soak/twenty_moves.py [--moves 20] [--qemu 10|7.2] [--store DIR] [--memory-mib 2048
    --fill-mib 1433 --dirty-mib-s 50 --ws-mib 256]

After every move: exit code 0, no bad page, no heartbeat counter lost over all QEMUs, the epoch one
higher than before, exactly one QEMU of the guest, no tool, no dead socket, no image left on the
store. After the first, every fifth and the last move the guest checks all of its memory. A watcher
outside the tool sees that the guest never runs twice. Ends with 1 and the reason otherwise.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "harness"))
import ferry  # noqa: E402
import heartbeats  # noqa: E402
import leftovers  # noqa: E402
import machine  # noqa: E402
from pf_guest import Config, Guest  # noqa: E402
from watcher import Watcher  # noqa: E402


def left_over(guest, store):
    directory = ferry.run_directory(guest)
    return (
        leftovers.stray_qemus(guest.uuid, guest.pid)
        + leftovers.stray_tools(store, directory)
        + leftovers.dead_sockets(guest.directory / "pf")
        + leftovers.large_files(store)
        + leftovers.temporary_files(store)
    )


def move(guest, store, number, epoch_before):
    """One move; returns its epoch. What is wrong ends the test."""
    outcome = ferry.migrate(guest, store)
    if outcome.code != 0:
        raise SystemExit(f"move {number}: {outcome.explain()}\n{guest.qemu_log()}")
    beats = guest.follower.snapshot()
    final = outcome.final
    epoch = final["claim"]["epoch"]
    # Anywhere in the move: QEMU 7.2 under TCG stands still when a migration begins, before it sends a byte.
    silence_s, silent_at = heartbeats.longest_gap_around(beats, outcome.started, outcome.ended)
    print(
        f"move {number:2}: {outcome.ended - outcome.started:6.2f} s, eviction {final['eviction-time']:5} ms, "
        f"silence {1000 * silence_s:4.0f} ms from {silent_at - outcome.started:5.2f} s on, downtime {final['downtime']:4} ms, "
        f"time to resident {final['time-to-resident']:5} ms, epoch {epoch}",
        flush=True,
    )
    wrong = guest.verdict()
    if epoch_before is not None and epoch != epoch_before + 1:
        wrong.append(f"epoch {epoch} after {epoch_before}")
    wrong += left_over(guest, store)
    if wrong:
        raise SystemExit(f"move {number}: {wrong}")
    return epoch


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--qemu", choices=("10", "7.2"), default="10")
    parser.add_argument(
        "--store", default="/var/tmp", help="a directory in which a store is made for the test"
    )
    parser.add_argument("--memory-mib", type=int, default=2048)
    parser.add_argument("--fill-mib", type=int, default=1433)
    parser.add_argument("--dirty-mib-s", type=int, default=50)
    parser.add_argument("--ws-mib", type=int, default=256)
    arguments = parser.parse_args()
    machine.prepare()
    config = Config(
        version=arguments.qemu,
        memory_mib=arguments.memory_mib,
        fill_mib=arguments.fill_mib,
        dirty_mib_s=arguments.dirty_mib_s,
        dirty_ws_mib=arguments.ws_mib,
    )
    store = Path(tempfile.mkdtemp(prefix="pageferry-soak-", dir=arguments.store))
    try:
        with tempfile.TemporaryDirectory(prefix="pf-soak-") as directory, Guest(
            config, directory
        ) as guest:
            guest.wait_ready()
            with Watcher(guest) as watcher:
                epoch = None
                for number in range(1, arguments.moves + 1):
                    epoch = move(guest, store, number, epoch)
                    if number == 1 or number % 5 == 0 or number == arguments.moves:
                        bad = guest.full_check()
                        print(
                            f"         the guest checked all of its memory: {bad} bad pages",
                            flush=True,
                        )
                        if bad:
                            raise SystemExit(guest.verdict())
                    time.sleep(0.5)
                violations = watcher.violations()
            wrong = violations + guest.verdict() + left_over(guest, store)
            beats = len(guest.follower.snapshot())
        if wrong:
            raise SystemExit(f"{wrong}")
        print(
            f"{arguments.moves} moves: no bad page, no heartbeat of {beats} lost, never ran twice, nothing left over"
        )
    finally:
        shutil.rmtree(store)


if __name__ == "__main__":
    main()
