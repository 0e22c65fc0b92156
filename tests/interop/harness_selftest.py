#!/usr/bin/env python3
"""The harness finds what it is there to find: a guest that runs twice, a QEMU left over, heartbeats
lost on the way.

Two QEMUs with one UUID boot the guest independently: to a watcher that is a guest running twice,
and it must say so by both of its witnesses. A real migration by QEMU itself (7.2, its own precopy)
must give no complaint.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "harness"))
import leftovers  # noqa: E402
import machine  # noqa: E402
from pf_guest import Config, Guest  # noqa: E402
from qmp import Qmp  # noqa: E402
from statements import expect  # noqa: E402
from watcher import Watcher  # noqa: E402

SMALL = Config(version="10", memory_mib=192, fill_mib=64, dirty_mib_s=5, dirty_ws_mib=8)


def runs_twice(directory):
    with Guest(SMALL, directory) as guest, Watcher(guest) as watcher:
        first = guest.pid
        guest.start()
        guest.follower.wait_beat(
            lambda beat: beat.counter > 100 and beat.stream != f"qemu-{first}", 60
        )
        said = watcher.violations()
        expect(
            any("both run the guest" in line for line in said),
            "two running QEMUs are seen through QMP",
        )
        expect(
            any("had begun" in line for line in said),
            "two running guests are seen through their heartbeats",
        )
        expect(
            len(leftovers.stray_qemus(guest.uuid, guest.pid)) == 1,
            "the QEMU that should not be there is named",
        )


def moves_once(directory):
    with Guest(SMALL, directory) as guest, Watcher(guest) as watcher:
        guest.wait_ready()
        destination = guest.start(incoming=f"unix:{directory}/move.sock")
        with Qmp(guest.qmp_path) as source, Qmp(destination) as target:
            source.raw(
                {
                    "execute": "migrate-set-capabilities",
                    "arguments": {"capabilities": [{"capability": "events", "state": True}]},
                }
            )
            source.command("migrate", uri=f"unix:{directory}/move.sock")
            source.wait_event("MIGRATION", 60, lambda data: data["status"] == "completed")
            target.wait_event("RESUME", 10)
            source.command("quit")
        moved = guest.follower.snapshot()[-1]
        guest.follower.wait_beat(lambda beat: beat.counter > moved.counter + 100, 30)
        guest.reap()
        beats = guest.follower.snapshot()
        expect(len({beat.stream for beat in beats}) == 2, "the guest is followed from QEMU to QEMU")
        expect(not guest.verdict(), f"a good migration has a clean verdict {guest.verdict()}")
        expect(not watcher.violations(), f"and no violation {watcher.violations()}")


def main():
    machine.prepare()
    with tempfile.TemporaryDirectory(prefix="pageferry-harness-") as directory:
        runs_twice(Path(directory) / "twice")
    with tempfile.TemporaryDirectory(prefix="pageferry-harness-") as directory:
        moves_once(directory)


if __name__ == "__main__":
    main()
