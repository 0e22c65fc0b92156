#!/usr/bin/env python3
"""The guest is an oracle: its heartbeats are regular and complete, its memory check is clean, and
one flipped bit is found.

    tests/interop/guest_selftest.py [--qemu 10|7.2]

Without the flipped bit no test that ends with "no bad page" would prove anything. Ends with exit
code 1 and the reason if one of the statements does not hold.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "harness"))
import heartbeats  # noqa: E402
import machine  # noqa: E402
from pf_guest import Config, Guest  # noqa: E402
from statements import expect  # noqa: E402


def main():
    parser = argparse.ArgumentParser(
        description="Proves that the guest notices what it must notice."
    )
    parser.add_argument("--qemu", choices=("10", "7.2"), default="10")
    arguments = parser.parse_args()
    machine.prepare()
    config = Config(
        version=arguments.qemu,
        memory_mib=384,
        fill_mib=192,
        dirty_mib_s=20,
        dirty_ws_mib=32,
        read_mib_s=10,
    )
    with tempfile.TemporaryDirectory(prefix="pageferry-selftest-") as directory, Guest(
        config, directory
    ) as guest:
        print(f"QEMU {arguments.qemu}, {guest.accelerator}")
        first = guest.wait_ready()
        last = guest.follower.wait_beat(lambda beat: beat.counter >= first.counter + 300, 60)
        beats = [
            beat
            for beat in guest.follower.snapshot()
            if first.counter <= beat.counter <= last.counter
        ]
        share = heartbeats.percentage(beats, first.at, last.at - first.at)
        expect(share > 60, f"heartbeats come about every 10 ms ({share:.0f} % of those due)")
        expect(not heartbeats.counter_faults(beats), "no heartbeat counter is missing")
        expect(
            last.dirtied - first.dirtied > 1000,
            f"it dirties memory ({last.dirtied - first.dirtied} pages)",
        )
        expect(
            last.checked - first.checked > 500,
            f"it checks memory ({last.checked - first.checked} pages)",
        )
        expect(guest.full_check() == 0, "a full check of untouched memory is clean")
        guest.pause_dirtying()
        paused = guest.follower.snapshot()[-1]
        later = guest.follower.wait_beat(lambda beat: beat.counter >= paused.counter + 30, 30)
        expect(later.dirtied - paused.dirtied < 200, "dirtying pauses on command")
        guest.resume_dirtying()
        guest.follower.wait_beat(lambda beat: beat.dirtied > later.dirtied + 500, 30)
        expect(not guest.verdict(), "nothing is wrong so far")
        flipped_at = time.monotonic()
        page = guest.flip_a_bit().split("page=")[1].split()[0]
        bad = guest.full_check()
        expect(bad == 1, f"one full check finds the flipped bit (bad={bad})")
        named = [
            text
            for at, _, text in guest.follower.texts(flipped_at)
            if text.startswith(f"PF-BAD page={page} ")
        ]
        expect(bool(named), f"and names page {page}: {named[0] if named else 'it does not'}")
        expect(
            guest.follower.wait_beat(lambda beat: beat.bad > 0, 5).bad == 1,
            "the heartbeat counts it",
        )
        expect(bool(guest.verdict()), "the verdict is no longer clean")
    expect(not list(Path(directory).parent.glob(Path(directory).name)), "nothing is left behind")


if __name__ == "__main__":
    main()
