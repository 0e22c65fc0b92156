"""Cases in which somebody stops a migration, or wants a second one."""

import signal

import ferry
from command_rig import LONG_FIRST_PASS, expect_code, expect_moved, expect_stayed
from statements import expect

BEFORE_SHUT = (
    "source.setup",
    "source.pass1",
    "source.blackout",
    "source.before-commit",
    "source.before-shut",
)


def status_and_abort(rig):
    """status says what the tool does, abort ends it; the guest runs on at the source."""
    guest = rig.guest()
    pid = guest.pid
    running = rig.start(guest, "--bandwidth", "10")
    running.wait_object(lambda value: value["event"] == "progress", 20)
    status = rig.tool(guest, "status", *rig.named(guest))
    said = status.final["source"]
    expect(status.code == 0 and said["status"] == "active", f"status of the tool: {said}")
    total = guest.config.memory_kib(guest.accelerator) * 1024
    expect(said["ram"]["total"] >= total, f"the guest's {total} bytes of memory are in it")
    epochs = status.final["epochs"]
    expect(len(epochs) == 1 and epochs[0]["vmm-pid"] == pid, f"one epoch, of this QEMU: {epochs}")
    expect(epochs[0]["state"] == "runs", "which runs the guest")
    abort = rig.tool(guest, "abort", "--name", guest.uuid)
    expect_code(abort, 0)
    expect_code(running.wait(30), 4, "aborted")
    expect_stayed(rig, guest, pid)
    expect_code(rig.tool(guest, "abort", "--name", guest.uuid), 1, "no migration of")
    status = rig.tool(guest, "status", *rig.named(guest))
    expect("source" not in status.final, "status: no tool runs")
    expect_code(rig.migrate(guest), 0)
    expect_moved(rig, guest, pid)


def interrupt(rig):
    """Ctrl-C at any point before SHUT(0): exit 4, and the guest runs on as it was."""
    guest = rig.guest()
    pid = guest.pid
    for name in BEFORE_SHUT:
        running, point = rig.start_to(name, guest, *LONG_FIRST_PASS)
        running.process.send_signal(signal.SIGINT)
        running.wait_stderr("interrupted: aborting", 10)
        point.let_go()
        expect_code(running.wait(30), 4)
        print(f"     {name}:")
        expect_stayed(rig, guest, pid)


def interrupt_late(rig):
    """Ctrl-C after SHUT(0) changes nothing: the guest arrives."""
    guest = rig.guest()
    for name in ("source.after-shut", "source.after-release"):
        pid = guest.pid
        running, point = rig.start_to(name, guest)
        running.process.send_signal(signal.SIGINT)
        running.wait_stderr("past the point of no return", 10)
        point.let_go()
        expect_code(ferry.end_migration(guest, running, 60), 0)
        expect_moved(rig, guest, pid)


def abort_while_recovering(rig):
    """The destination's tool is killed after the switch; while this one recovers, abort is refused instead of promised."""
    guest = rig.guest()
    pid = guest.pid
    running = rig.start(guest, "--fail-at", "destination.restoring=kill")
    running.wait_object(lambda value: "tool ended: recovering" in value.get("text", ""), 30)
    refused = 0
    while running.process.poll() is None:
        abort = rig.tool(guest, "abort", "--name", guest.uuid)
        expect(abort.code != 0, f"abort is not promised: {abort.explain()}")
        refused += "past the point of no return" in abort.explain()
    expect(refused > 0, f"{refused} times refused")
    expect_code(ferry.end_migration(guest, running, 60), 0)
    expect_moved(rig, guest, pid)


def second_migration(rig):
    """Another migration of the same guest is refused, by its monitor or by the VM's lock."""
    guest = rig.guest()
    pid = guest.pid
    running, point = rig.start_to("source.pass1", guest, *LONG_FIRST_PASS)
    expect_code(rig.start(guest).wait(30), 3, "another client holds it")
    second = ferry.Running(
        "migrate", f"qemu:{guest.watch_path()}", "--store", rig.store, "--to", "local",
        "--run-dir", ferry.run_directory(guest))
    expect_code(second.wait(30), 3, f"process {running.process.pid}")
    point.let_go()
    expect_code(ferry.end_migration(guest, running, 60), 0)
    expect_moved(rig, guest, pid)


CASES = {
    "status-and-abort": status_and_abort,
    "interrupt": interrupt,
    "interrupt-late": interrupt_late,
    "abort-while-recovering": abort_while_recovering,
    "second-migration": second_migration,
}
