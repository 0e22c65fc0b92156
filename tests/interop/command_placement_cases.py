"""Cases about the way in which pages get into the destination's memory: --placement, what a recovery
goes on with, and what is done where direct is not permitted."""

import os
import signal
import socket
from contextlib import contextmanager

import ferry
import machine
import processes
from command_rig import Point, expect_code, expect_moved
from qmp import Qmp, QmpError
from statements import expect

NO_WAY = "no way into the memory of QEMU"


def placement(rig):
    """--placement is obeyed and said; without it pages go straight into memory."""
    guest = rig.guest()
    for options, expected in (
        ([], "direct"),
        (["--placement", "stream"], "stream"),
        (["--placement", "direct"], "direct"),
    ):
        pid = guest.pid
        outcome = rig.migrate(guest, *options)
        expect_code(outcome, 0)
        expect(outcome.final["placement"] == expected, f"{options}: {outcome.final['placement']}")
        expect_moved(rig, guest, pid)
    expect_code(rig.migrate(guest, "--placement", "uffd"), 2)


def _receive(rig, guest, how):
    """The guest runs at a destination whose pager, which is given, has not brought all pages."""
    expect_code(rig.tool(guest, "send", f"qemu:{guest.qmp_path}", *rig.named(guest)), 0)
    guest.reap()
    point = Point(rig, "destination.restoring")
    receiver = ferry.Running(
        "receive", *rig.named(guest), "--run-dir", ferry.run_directory(guest),
        "--placement", how, "--prefetch", "none", *point.options)
    point.wait_reached()
    (qemu,) = processes.qemus_of(guest.uuid)
    with Qmp(qemu.watch_socket()) as monitor:
        status = monitor.command("query-migrate")["status"]
        on = [one["state"] for one in monitor.command("query-migrate-capabilities")
              if one["capability"] == "postcopy-preempt"]
    expect(status.startswith("postcopy"), f"pages are missing: {status}")
    expect(on == [how == "stream"], f"{how}: postcopy-preempt is {on}")
    guest.adopt(qemu.pid, qemu.monitors()[0])
    return receiver


def _kill(pager):
    pager.process.kill()
    pager.wait(10)


def _receive_and_kill(rig, guest, how):
    _kill(_receive(rig, guest, how))


def recover_placement(rig):
    """recover goes on in the way in which the killed pager had begun."""
    guest = rig.guest()
    for how in ("stream", "direct"):
        pid = guest.pid
        _receive_and_kill(rig, guest, how)
        recovered = rig.tool(guest, "recover", *rig.named(guest))
        expect_code(recovered, 0)
        expect(recovered.final["placement"] == how, f"begun by {how}: {recovered.final}")
        expect_moved(rig, guest, pid)


@contextmanager
def _in_a_container(rig):
    """The program may not duplicate descriptors of other processes."""
    script = rig.directory / "pageferry-in-container"
    by = machine.REPOSITORY / "tests" / "harness" / "without_pidfd_getfd.py"
    script.write_text(f'#!/bin/sh\nexec "{by}" "{machine.pageferry()}" "$@"\n')
    script.chmod(0o755)
    before = os.environ.get("PAGEFERRY")
    os.environ["PAGEFERRY"] = str(script)
    try:
        yield
    finally:
        del os.environ["PAGEFERRY"]
        if before is not None:
            os.environ["PAGEFERRY"] = before


def placement_not_permitted(rig):
    """Where direct is not permitted, pages come in the stream; asked for by name it is refused, and the
    guest stays."""
    guest = rig.guest()
    pid = guest.pid
    with _in_a_container(rig):
        expect_code(rig.migrate(guest, "--placement", "direct"), 1, NO_WAY)
        expect(guest.pid == pid, "the guest is where it was")
        outcome = rig.migrate(guest)
    expect_code(outcome, 0)
    expect(outcome.final["placement"] == "stream", f"pages came by {outcome.final['placement']}")
    expect_moved(rig, guest, pid)


def recover_not_permitted(rig):
    """Somebody who may not trace QEMU does not go on in the stream with what was begun directly: exit 7,
    the guest waits, and is recovered by somebody who may."""
    guest = rig.guest()
    pid = guest.pid
    _receive_and_kill(rig, guest, "direct")
    with _in_a_container(rig):
        expect_code(rig.tool(guest, "recover", *rig.named(guest)), 7, NO_WAY)
    expect_code(rig.tool(guest, "recover", *rig.named(guest)), 0)
    expect_moved(rig, guest, pid)


def _says_something(connection, timeout_s=1.0):
    connection.settimeout(timeout_s)
    try:
        return bool(connection.recv(4096))
    except TimeoutError:
        return False


@contextmanager
def _main_loop_waits_for_a_page(guest, pager, first_mib=0, mib=128):
    """The pager is killed, and QEMU's main thread, with it the global lock and every monitor, waits for a
    page that nobody brings: it is told to read so much of the guest's memory. Gives the monitor that it
    will answer. (It may get there without being told; so the monitor is opened before.)"""
    (qemu,) = processes.qemus_of(guest.uuid)
    with Qmp(qemu.watch_socket()) as monitor:
        request = {"execute": "pmemsave",
                   "arguments": {"val": first_mib << 20, "size": mib << 20,
                                 "filename": "/dev/null"}}
        pager.process.send_signal(signal.SIGSTOP)
        try:
            monitor.raw(request, timeout_s=1)
            expect(False, "the main loop is stuck")
        except QmpError:
            pass  # no answer in time
        _kill(pager)
        with socket.socket(socket.AF_UNIX) as another:
            another.connect(qemu.monitors()[-1])
            expect(_says_something(another), "another monitor greets")
            another.sendall(b'{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}\n')
            expect(not _says_something(another), "and then answers nothing")
        yield monitor


def _guest_recovered_from_stuck(rig, placement):
    guest = rig.guest()
    pid = guest.pid
    pager = _receive(rig, guest, placement)
    (kept,) = ferry.run_directory(guest).glob("*/*/memory-map.json")
    with _main_loop_waits_for_a_page(guest, pager):
        recovered = rig.tool(guest, "recover", *rig.named(guest))
    expect_code(recovered, 0)
    expect(recovered.final["placement"] == placement, f"{recovered.final}")
    expect(not kept.exists(), "the memory map is removed when nobody needs it")
    expect_moved(rig, guest, pid)
    return guest


def recover_stuck(rig):
    """A QEMU whose monitors are silent because a thread with the global lock waits for a page is recovered:
    the page is brought first."""
    _guest_recovered_from_stuck(rig, "direct")


def recover_bad_map(rig):
    """A memory map that cannot be believed is named in one line, and recovery goes on without it."""
    guest = rig.guest()
    pid = guest.pid
    _receive_and_kill(rig, guest, "direct")
    (kept,) = ferry.run_directory(guest).glob("*/*/memory-map.json")
    kept.write_text(kept.read_text().replace("pc.ram", "pc.rom"))
    recovered = rig.tool(guest, "recover", *rig.named(guest))
    warnings = [said for _, said in recovered.objects if said["event"] == "warning"]
    expect(len(warnings) == 1 and str(kept) in str(warnings), f"it is named: {warnings}")
    expect_code(recovered, 0)
    expect_moved(rig, guest, pid)


def recover_stuck_stream(rig):
    """The same where pages come in QEMU's stream: it is told out-of-band to take another. Nothing of that
    is left, and the guest moves on."""
    guest = _guest_recovered_from_stuck(rig, "stream")
    _expect_no_connection_left(guest)
    pid = guest.pid
    expect_code(rig.migrate(guest, "--placement", "stream"), 0)
    expect_moved(rig, guest, pid)
    _expect_no_connection_left(guest)


def _expect_no_connection_left(guest):
    """The monitor for out-of-band commands takes another client: QEMU is not its own any more."""
    (qemu,) = processes.qemus_of(guest.uuid)
    (path,) = (path for path in qemu.monitors() if path.endswith("/pageferry-oob.sock"))
    with Qmp(path) as monitor:
        expect(monitor.status() == "running", "nothing is left of the out-of-band connection")


def recover_stuck_stream_twice(rig):
    """A recovery that goes on out-of-band is killed in its turn, and the next one finds the same state."""
    guest = rig.guest()
    pid = guest.pid
    with _main_loop_waits_for_a_page(guest, _receive(rig, guest, "stream")) as monitor:
        first = ferry.Running("recover", *rig.named(guest), "--run-dir", ferry.run_directory(guest),
                              "--prefetch", "none")
        expect(monitor.answer(20) == {}, "the main loop runs again")
    with _main_loop_waits_for_a_page(guest, first, first_mib=128, mib=48):
        recovered = rig.tool(guest, "recover", *rig.named(guest))
    expect_code(recovered, 0)
    expect(recovered.final["placement"] == "stream", f"{recovered.final}")
    expect_moved(rig, guest, pid)
    _expect_no_connection_left(guest)


CASES = {
    "placement": placement,
    "recover-placement": recover_placement,
    "placement-not-permitted": placement_not_permitted,
    "recover-not-permitted": recover_not_permitted,
    "recover-stuck": recover_stuck,
    "recover-stuck-stream": recover_stuck_stream,
    "recover-stuck-stream-twice": recover_stuck_stream_twice,
    "recover-bad-map": recover_bad_map,
}
