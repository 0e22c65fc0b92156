"""Cases in which the store fails, hangs, or lies."""

import os
import signal
import subprocess
from pathlib import Path

import leftovers
from command_rig import expect_code, expect_moved, expect_stayed, poll
from file_keeping_store import file_keeping_store
from statements import expect

# A process whose store hangs ends in about: 1 s writer, 3 s page file, 5 s removal.
ENDS_WITHIN_S = 15


def several_writes(effect):
    """Of some writes in a row at least one holds pages: the others may be zeros that are written over
    the tail, where no harm is done."""
    return ",".join(f"write:nth={number}:{effect}" for number in range(30, 46))


def faults(rig):
    """A store that fails before SHUT(0) ends the migration, the guest runs on; what can be repaired
    is."""
    guest = rig.guest()
    pid = guest.pid
    for spec, text, options in (
        ("write:after=20:enospc", "no-space", ()),
        ("allocate:nth=1:enospc", "no-space", ()),
        ("write:after=20:eio", "'io'", ()),
        ("sync:nth=1:eio", "'io'", ()),
        (several_writes("lost"), "corrupt", ("--verify",)),
        (several_writes("torn"), "corrupt", ("--verify",)),
        ("read:after=10:flip", "corrupt", ("--verify",)),
        ("read:after=3:eio", "'io'", ("--verify",)),
    ):
        print(f"     {spec}:")
        expect_code(rig.migrate(guest, "--inject-store", spec, *options), 1, text)
        expect_stayed(rig, guest, pid)
    expect_code(rig.migrate(guest, "--inject-store", "write:wrong"), 2)
    expect_code(rig.migrate(guest, "--inject-store", "read:nth=10:flip,write:nth=3:delay-ms=100"), 0)
    expect_moved(rig, guest, pid)


def bad_page(rig):
    """An image that cannot be opened is not claimed: the source takes the guest back. A page that
    stays bad is never installed: named, exit 8."""
    guest = rig.guest()
    pid = guest.pid
    expect_code(rig.migrate(guest, "--inject-store", "read:flip"), 1, "corrupt")
    expect_stayed(rig, guest, pid)
    outcome = rig.migrate(guest, "--inject-store", "read:after=150:flip")
    expect_code(outcome, 8, "RAM block")
    beats = guest.follower.snapshot()
    expect(not beats[-1].bad, "the guest never saw a bad page")


def verify(rig):
    """--verify reads everything back before the release."""
    guest = rig.guest()
    pid = guest.pid
    outcome = rig.migrate(guest, "--verify")
    expect_code(outcome, 0)
    phases = [value["phase"] for _, value in outcome.objects if value["event"] == "phase"]
    expect(phases.index("verify") < phases.index("switchover"), f"verified first: {phases}")
    expect("verify" in outcome.final["downtime-split"], "the downtime names the part")
    expect_moved(rig, guest, pid)


def hang(rig):
    """Writes or syncs that are never answered: abort, --timeout and --blackout-limit all end it."""
    guest = rig.guest()
    pid = guest.pid
    running = rig.start(guest, "--inject-store", "write:after=20:hang")
    running.wait_object(lambda value: value["event"] == "progress", 20)
    running.process.send_signal(signal.SIGINT)
    expect_code(running.wait(ENDS_WITHIN_S), 4)
    expect_stayed(rig, guest, pid)
    for spec, option in (
        ("write:after=20:hang", "--timeout"),
        ("sync:hang", "--blackout-limit"),
    ):
        running = rig.start(guest, "--inject-store", spec, option, "2")
        expect_code(running.wait(ENDS_WITHIN_S), 6, option)
        expect_stayed(rig, guest, pid)


def hang_in_call(rig):
    """A store that holds up the system call itself, as a dead NFS server does."""
    library = _library(rig)
    guest = rig.guest()
    pid = guest.pid
    for call, option in (
        ("fsync:/state", "--blackout-limit"),
        ("io_submit:20", "--timeout"),
    ):
        print(f"     {call}:")
        environment = {"LD_PRELOAD": str(library), "PF_HANG": call}
        running = rig.start(guest, option, "2", environment=environment)
        expect_code(running.wait(ENDS_WITHIN_S), 6, option)
        expect_stayed(rig, guest, pid)
    for call in ("fsync:/manifest.json", "io_submit:20", "fsync:/state"):
        print(f"     {call}, Ctrl-C:")
        said = rig.directory / "hangs"
        said.unlink(missing_ok=True)
        environment = {"LD_PRELOAD": str(library), "PF_HANG": call, "PF_HANG_SAYS": str(said)}
        running = rig.start(guest, environment=environment)
        expect_stopped_by_signal(running, said)
        expect_stayed(rig, guest, pid)


def expect_stopped_by_signal(running, said):
    poll(said.exists, "the call hangs")
    running.process.send_signal(signal.SIGINT)
    expect_code(running.wait(ENDS_WITHIN_S), 4)


def keeps_open_files(rig):
    """On a store that keeps what is removed while it is open, nothing is left: of a move, of one that
    is taken back, of one that a dead tool's partner finishes."""
    guest = rig.guest()
    with file_keeping_store(rig):
        for options, code in (
            ((), 0),
            (("--inject-store", "read:flip"), 1),
            (("--fail-at", "destination.restoring=kill"), 0),
        ):
            print(f"     {options}:")
            pid = guest.pid
            outcome = rig.migrate(guest, *options)
            expect_code(outcome, code)
            if code == 0:
                expect_moved(rig, guest, pid)
            else:
                expect_stayed(rig, guest, pid)
            stays = [value for _, value in outcome.objects if "image stays" in value.get("text", "")]
            left = leftovers.attempts(rig.store)
            expect(not stays and not left, f"no image is left on the store {stays} {left}")


def _library(rig):
    library = rig.directory / "hanging_store.so"
    source = Path(__file__).with_name("hanging_store.c")
    subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"],
                   check=True)
    return library


CASES = {
    "store-faults": faults,
    "bad-page": bad_page,
    "verify": verify,
    "store-hangs": hang,
    "store-hangs-in-call": hang_in_call,
    "store-keeps-open-files": keeps_open_files,
}
