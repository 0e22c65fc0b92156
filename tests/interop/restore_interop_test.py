#!/usr/bin/env python3
"""A real guest is captured into a page file and restored into a fresh, unmodified QEMU; its own
check of its memory must be clean.

    tests/interop/restore_interop_test.py --probe PROGRAM --qemu 10|7.2 [--placement auto|direct|stream] CASE

With a placement, pages must have got into the destination's memory in that way; a pager that
attaches is never told which.

Cases:
  round-trip   the guest goes on, no heartbeat lost, every page right
  none         without prefetch the guest runs on what it asks for
  linear       the same as round-trip, prefetched in linear order
  hugetlb      the destination's memory is backed by 2 MiB pages
  kill         the process that serves pages is killed twice on the way; a new one attaches
  attach-done  attaching to a guest that is complete already ends at once
  bad-page     a flipped bit in the page file stops the guest, and the page is named
  refusals     a destination that runs already, or has other memory, is refused

Ends with exit code 1 and the reason if one of the statements does not hold.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "harness"))
import huge_pages  # noqa: E402
import machine  # noqa: E402
import processes  # noqa: E402
from damage import flip_bit  # noqa: E402
from pf_guest import Config, Guest  # noqa: E402
from qmp import Qmp  # noqa: E402
from statements import expect  # noqa: E402

HUGE_PAGE_KIB = huge_pages.BYTES // 1024


def wait_for_monitor(qmp_path):
    """A QEMU's second monitor comes up last."""
    with Qmp(str(Path(qmp_path).with_name("watch.sock"))) as monitor:
        monitor.command("query-status")


class Move:
    """One guest, its page file, and its destination QEMU."""

    def __init__(self, probe, guest, directory, placement):
        self.probe, self.guest, self.directory = probe, guest, Path(directory)
        self.placement = placement
        self.store = self.directory / "store"
        self.store.mkdir()
        self.destination = ""
        self.attempts = 0

    def capture(self):
        command = [self.probe, "capture", "--qmp", self.guest.qmp_path, "--dir", str(self.store)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def start_destination(self, *options):
        self.destination = self.guest.start(incoming="defer", qemu_options=["-S", *options])
        wait_for_monitor(self.destination)
        newest = max(processes.qemus_of(self.guest.uuid), key=lambda qemu: qemu.pid)
        self.pid = newest.pid

    def serve(self, command, *options):
        """Starts the process that serves pages."""
        self.attempts += 1
        if command == "restore":
            options = (*options, "--placement", self.placement)
        return subprocess.Popen(
            [self.probe, command, "--qmp", self.destination, "--dir", str(self.store),
             "--channel", str(self.directory / f"channel{self.attempts}"), *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_for(self, process, edge):
        for line in process.stdout:
            if line.startswith(edge + " "):
                return
        raise SystemExit(f"FAIL no '{edge}': {process.stderr.read()}")

    def adopt(self):
        self.guest.adopt(self.pid, self.destination)

    def start_restore(self, *options):
        """The guest runs at the destination, and pages are served."""
        process = self.serve("restore", *options)
        self.wait_for(process, "running")
        self.adopt()
        return process

    def restore(self, *options):
        """The whole restore; returns its statistics."""
        return self.end(self.start_restore(*options))

    def end(self, process):
        output, errors = process.communicate(timeout=120)
        expect(process.returncode == 0, f"the restore ends well {errors.strip()}")
        stats = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
        # "auto": the pages had all come before this pager.
        expect(self.placement == "auto" or stats["placement"] in (self.placement, "auto"),
               f"pages came by {stats['placement']}")
        return stats


def expect_sound_guest(guest):
    beat = guest.follower.snapshot()[-1]
    guest.follower.wait_beat(lambda later: later.counter > beat.counter + 100, 60)
    expect(guest.full_check() == 0, "the guest finds no bad page in its memory")
    expect(not guest.verdict(), f"no heartbeat is lost or repeated {guest.verdict()}")


def round_trip(move, order):
    move.capture()
    move.start_destination()
    stats = move.restore("--order", order)
    expect(stats["demand"] + stats["prefetched"] == stats["pages"], f"each page was sent once {stats}")
    expect(stats["faults"] > 0, f"{stats['faults']} pages were asked for")
    expect_sound_guest(move.guest)


def without_prefetch(move):
    move.capture()
    move.start_destination()
    process = move.start_restore("--order", "none")
    expect_sound_guest(move.guest)
    expect(process.poll() is None, "it serves on")
    process.terminate()
    process.communicate()
    finisher = move.serve("attach")
    move.end(finisher)
    expect_sound_guest(move.guest)


def hugetlb(move):
    if os.geteuid() != 0:
        raise SystemExit("FAIL hugetlb: reserving huge pages needs root")
    memory_kib = move.guest.config.memory_kib(move.guest.accelerator)
    expect(memory_kib % HUGE_PAGE_KIB == 0, "the guest's memory is a multiple of 2 MiB")
    with huge_pages.reserved(memory_kib // HUGE_PAGE_KIB), contextlib.closing(move.guest):
        move.capture()
        move.start_destination(
            "-machine", "memory-backend=pc.ram", "-object",
            f"memory-backend-memfd,id=pc.ram,size={memory_kib}K,hugetlb=on,hugetlbsize=2M")
        process = move.start_restore("--bandwidth", "100")
        time.sleep(1)  # lets the guest fault while prefetch is slow; no statement depends on it
        process.kill()
        process.wait()
        move.end(move.serve("attach"))
        expect_sound_guest(move.guest)


def kill(move):
    move.capture()
    move.start_destination()
    process = move.start_restore("--bandwidth", "60")
    for last in (False, True):
        beat = move.guest.follower.snapshot()[-1]
        move.guest.follower.wait_beat(lambda later: later.counter > beat.counter + 30, 60)
        expect(process.poll() is None, "pages are still missing")
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = move.serve("attach", "--bandwidth", "0" if last else "60")
        move.wait_for(process, "attached")
    stats = move.end(process)
    expect(0 < stats["demand"] + stats["prefetched"] < stats["pages"], f"only the rest was sent {stats}")
    expect_sound_guest(move.guest)


def attach_done(move):
    move.capture()
    move.start_destination()
    move.restore()
    # A pager that is killed at the very end leaves its settings.
    settings = ["postcopy-ram", "postcopy-preempt"]
    with move.guest.watch() as monitor:
        monitor.command("migrate-set-capabilities", capabilities=[
            {"capability": name, "state": True} for name in settings])
    process = move.serve("attach")
    stats = move.end(process)
    expect(stats["demand"] + stats["prefetched"] == 0, "nothing was sent again")
    with move.guest.watch() as monitor:
        on = [one["capability"] for one in monitor.command("query-migrate-capabilities") if one["state"]]
    expect(not set(on) & set(settings), f"no setting stays that would hinder the next move: {on}")
    expect_sound_guest(move.guest)


def bad_page(move):
    move.capture()
    pages = move.store / "pages"
    flip_bit(pages, pages.stat().st_size // 2)  # home slots fill the middle of the file
    move.start_destination()
    process = move.serve("restore", "--order", "linear")
    _, errors = process.communicate(timeout=120)
    expect(process.returncode == 1, "the restore fails")
    expect("corrupt" in errors and "cannot be proved" in errors and "pc.ram" in errors,
           f"and names the page: {errors.strip()}")
    expect("the guest was stopped" in errors, "and says that the guest was stopped")
    move.adopt()
    with move.guest.watch() as monitor:
        expect(not monitor.command("query-status")["running"], "the guest does not run")
        status = monitor.command("query-migrate")["status"]
        expect(status.startswith("postcopy"), f"its memory is incomplete, and QEMU knows it ({status})")


def refusals(move):
    move.capture()
    move.start_destination("-m", "size=256M")
    errors = move.serve("restore").communicate(timeout=60)[1]
    expect("RAM block 'pc.ram'" in errors, f"less memory is refused: {errors.strip()}")
    running = move.guest.start()
    wait_for_monitor(running)
    process = subprocess.run([move.probe, "restore", "--qmp", running, "--dir", str(move.store),
                              "--channel", str(move.directory / "x")], capture_output=True, text=True)
    expect("not waiting for a migration" in process.stderr,
           f"a running QEMU is refused: {process.stderr.strip()}")


CASES = {
    "round-trip": lambda move: round_trip(move, "hot"),
    "linear": lambda move: round_trip(move, "linear"),
    "none": without_prefetch,
    "hugetlb": hugetlb,
    "kill": kill,
    "attach-done": attach_done,
    "bad-page": bad_page,
    "refusals": refusals,
}


def main():
    parser = argparse.ArgumentParser(description="Restores real guests.")
    parser.add_argument("--probe", required=True)
    parser.add_argument("--qemu", choices=("10", "7.2"), default="10")
    parser.add_argument("--placement", choices=("auto", "direct", "stream"), default="auto")
    parser.add_argument("case", choices=CASES)
    arguments = parser.parse_args()
    machine.prepare()
    config = Config(version=arguments.qemu, memory_mib=384, fill_mib=192, dirty_mib_s=20,
                    dirty_ws_mib=48, read_mib_s=5)
    directory = tempfile.mkdtemp(prefix="pageferry-restore-")
    try:
        with Guest(config, directory) as guest:
            print(f"{arguments.case} on QEMU {arguments.qemu}, {guest.accelerator}, "
                  f"placement {arguments.placement}", flush=True)
            guest.wait_ready()
            CASES[arguments.case](Move(arguments.probe, guest, directory, arguments.placement))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
