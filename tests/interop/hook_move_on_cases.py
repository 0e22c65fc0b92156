"""Cases in which a guest is moved on while pages of it are still missing."""

import os
import signal
from pathlib import Path

import processes
from hook_statements import expect_code, expect_moved, expect_stayed
from statements import expect

# Each read of the page file is this late: a restore of 64 MiB then takes some seconds.
SLOW_STORE = ("--inject-store", "read:after=8:delay-ms=60")


def is_restoring(rig, vm):
    seen = [e for e in rig.run(vm, "status").final["vmms"] if e["pid"] == vm.pid]
    return bool(seen) and seen[0]["state"] == "restoring"


def slow_restore(rig, vm):
    """A receive that takes seconds, and already serves: the guest runs there."""
    expect_code(rig.run(vm, "send"), 0)
    old = rig.start(vm, "receive", *SLOW_STORE)
    old.wait_object(lambda value: value.get("phase") == "page-in", 20)
    (pid,) = vm.living()
    words = processes.command_line(pid)
    vm.runs_at({"pid": pid, "hook": words[words.index("--hook") + 1]})
    expect(is_restoring(rig, vm), "pages of the guest are missing")
    return old


def begin_moving_on(rig, vm, *options):
    """A migrate that has made passes while pages of its guest are missing."""
    tool = rig.start(vm, "migrate", *options)
    tool.wait_object(
        lambda value: value.get("phase") == "page-out" and value["ram"]["dirty-sync-count"] > 2,
        20,
    )
    expect(is_restoring(rig, vm), "passes are made while pages are missing")
    return tool


def move_on(rig, *options, **settings):
    vm = rig.vm(options=options, **settings)
    old = slow_restore(rig, vm)
    tool = begin_moving_on(rig, vm)
    second = vm.pid
    outcome = tool.wait(60)
    restored = old.wait(60)
    expect_code(restored, 0)
    expect(restored.final["destination"]["pid"] == second, "the second VMM got all of its pages")
    expect_moved(rig, vm, outcome)
    epochs = [entry["epoch"] for entry in rig.run(vm, "status").final["epochs"]]
    expect(epochs[-1] == 2, f"epoch 2 runs: {epochs}")
    expect_moved(rig, vm, rig.run(vm, "migrate"))


def move_on_memfd(rig):
    """A guest that is still being restored is moved on: it arrives as it is, and the first restore
    comes to its end."""
    move_on(rig)


def move_on_anonymous(rig):
    """The same with memory without a file."""
    move_on(rig, "--memory-kind", "anonymous")


def move_on_sync(rig):
    """The same where the kernel has no asynchronous write protection."""
    move_on(rig, "--dirty-source", "wp-sync")


def move_on_anonymous_sync(rig):
    """The same, without a file."""
    move_on(rig, "--memory-kind", "anonymous", "--dirty-source", "wp-sync")


def move_on_kvm(rig):
    """The same with a guest in KVM."""
    move_on(rig, vcpus="kvm")


def move_on_kvm_log(rig):
    """The same with KVM's dirty log, which does not know the restore."""
    move_on(rig, "--dirty-source", "kvm-log", vcpus="kvm")


def move_on_from_migrate(rig):
    """The first move is a migrate, whose tool waits beside the agent that serves."""
    vm = rig.vm()
    old = rig.start(vm, "migrate", *SLOW_STORE)
    value = old.wait_object(lambda value: value.get("phase") == "page-in", 20)
    expect(value["ram"]["remaining"] > 0, f"pages are missing: {value}")
    (pid,) = vm.living()
    words = processes.command_line(pid)
    vm.runs_at({"pid": pid, "hook": words[words.index("--hook") + 1]})
    expect(rig.run(vm, "status").final.get("serving"), "status shows who serves")
    tool = begin_moving_on(rig, vm)
    expect_code(rig.run(vm, "migrate"), 3, "mover already")
    expect_code(old.wait(60), 0)
    expect_moved(rig, vm, tool.wait(60))


def move_on_aborted(rig):
    """Moving on is given up: the guest stays where it is, the restore goes on to its end."""
    vm = rig.vm()
    old = slow_restore(rig, vm)
    tool = begin_moving_on(rig, vm)
    expect_code(rig.run(vm, "abort"), 0)
    expect_code(tool.wait(40), 4)
    expect(is_restoring(rig, vm), "pages are still missing")
    expect_code(old.wait(60), 0)
    expect_stayed(rig, vm)
    expect_moved(rig, vm, rig.run(vm, "migrate"))


def move_on_kill_pager(rig):
    """kill -9 of the first restore's pager while the guest is moved on: the switch waits, the guest
    runs on in one VMM, recover brings the rest."""
    vm = rig.vm()
    old = slow_restore(rig, vm)
    tool = begin_moving_on(rig, vm)
    old.process.kill()
    old.process.wait()
    passes = tool.wait_object(lambda value: value.get("phase") == "page-out", 20)
    expect(passes["status"] == "active", "the second tool goes on")
    expect(is_restoring(rig, vm), "and does not stop the guest")
    outcome = rig.run(vm, "recover")
    expect_code(outcome, 0)
    expect_code(tool.wait(40), 4)
    vm.runs_at(outcome.final["destination"])
    expect_stayed(rig, vm)
    expect_moved(rig, vm, rig.run(vm, "migrate"))


def move_on_kill_agent(rig):
    """kill -9 of the agent that serves while others move the guest on: its migrate brings the rest,
    and the guest arrives."""
    vm = rig.vm()
    old = rig.start(vm, "migrate", *SLOW_STORE)
    old.wait_object(lambda value: value.get("phase") == "page-in", 20)
    agents = {pid for pid in processes.all_pids() if is_child(pid, old.process.pid)}
    (pid,) = vm.living()
    words = processes.command_line(pid)
    vm.runs_at({"pid": pid, "hook": words[words.index("--hook") + 1]})
    tool = begin_moving_on(rig, vm)
    expect(len(agents) == 1, f"one agent of the first migrate: {agents}")
    os.kill(agents.pop(), signal.SIGKILL)
    expect_code(old.wait(60), 0)
    expect_moved(rig, vm, tool.wait(60))


def is_child(pid, parent):
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return False
    return int(fields[1]) == parent and "agent" in (processes.command_line(pid) or [])


CASES = {
    case.__name__.replace("_", "-"): case
    for case in (
        move_on_memfd,
        move_on_anonymous,
        move_on_sync,
        move_on_anonymous_sync,
        move_on_kvm,
        move_on_kvm_log,
        move_on_from_migrate,
        move_on_aborted,
        move_on_kill_pager,
        move_on_kill_agent,
    )
}
