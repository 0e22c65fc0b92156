#!/usr/bin/env python3
"""The commands of pageferry on a VMM with a hook: the demo VMM, whose guest judges its own memory.

    tests/interop/hook_interop_test.py [--keeping-store] CASE...

Each case's first words say what holds. Ends with exit code 1 and the statement that does not hold.
"""

import argparse
import os
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "harness"))
import hook_base_cases  # noqa: E402
import hook_move_on_cases  # noqa: E402
import leftovers  # noqa: E402
from file_keeping_store import file_keeping_store  # noqa: E402
from hook_rig import HookRig  # noqa: E402
from hook_statements import (  # noqa: E402
    expect_code,
    expect_moved,
    expect_one_vmm,
    expect_stayed,
    said,
    warnings_of,
)
from statements import expect  # noqa: E402

BEFORE_COMMIT = (
    "source.setup",
    "source.pass1",
    "source.blackout",
    "source.before-commit",
    "source.before-shut",
)
# A first pass that lasts long enough to be met in it.
LONG_FIRST_PASS = ("--bandwidth", "60")


def two_moves(rig):
    """There and back: the guest runs on, no page is wrong, the VMM before is gone."""
    vm = rig.vm()
    for _ in range(2):
        expect_moved(rig, vm, rig.run(vm, "migrate"))
    epochs = rig.run(vm, "status").final["epochs"]
    expect([entry["epoch"] for entry in epochs][-1] == 2, f"epoch 2 runs: {epochs}")


def anonymous(rig):
    """Memory without a file is read out of the VMM's process; there and back."""
    vm = rig.vm(options=("--memory-kind", "anonymous"))
    for _ in range(2):
        expect_moved(rig, vm, rig.run(vm, "migrate"))


def touched_record(rig, vm):
    """The order of first touches that a move left in the VM's directory on the store."""
    record = rig.store / vm.name / leftovers.TOUCHES
    expect(record.is_file(), "the order of first touches is on the store")
    expect(record.stat().st_mode & 0o777 == 0o600, "it is for its owner only")
    unfinished = leftovers.temporary_files(rig.store)
    expect(not unfinished, f"nothing unfinished is beside it {unfinished}")
    return record


def recorded(rig):
    """A move prefetches in the order of first touches that the move before left; without one, or
    with one that is damaged, it says so and prefetches as hot."""
    vm = rig.vm()
    first = rig.run(vm, "migrate", "--prefetch", "recorded")
    expect_moved(rig, vm, first)
    expect(first.final["prefetch"]["order"] == "hot", f"none is there yet: {first.final}")
    told = [text for text in warnings_of(first) if "not 'recorded'" in text]
    expect(len(told) == 1, f"that is said once: {warnings_of(first)}")
    expect_moved(rig, vm, rig.run(vm, "migrate", "--prefetch", "linear"))
    record = touched_record(rig, vm)
    outcome = rig.run(vm, "migrate", "--prefetch", "recorded")
    expect_moved(rig, vm, outcome)
    expect(outcome.final["prefetch"]["order"] == "recorded", f"it is used: {outcome.final}")
    told = [text for text in warnings_of(outcome) if "'recorded'" in text]
    expect(not told, f"nothing is wrong with it: {told}")
    touched_record(rig, vm)
    record.write_bytes(record.read_bytes()[:-1])
    outcome = rig.run(vm, "migrate", "--prefetch", "recorded")
    expect_moved(rig, vm, outcome)
    expect(outcome.final["prefetch"]["order"] == "hot", f"a damaged one is not: {outcome.final}")
    told = [text for text in warnings_of(outcome) if "record of first touches" in text]
    expect(len(told) == 1, f"and it is said why: {warnings_of(outcome)}")


def touches_not_kept(rig):
    """A store that does not take the order of first touches costs a warning, not the move."""
    vm = rig.vm()
    expect_moved(rig, vm, rig.run(vm, "migrate", "--prefetch", "linear"))
    record = touched_record(rig, vm)
    record.unlink()
    (record / "in the way").mkdir(parents=True)
    outcome = rig.run(vm, "migrate", "--prefetch", "linear")
    expect_code(outcome, 0)
    vm.runs_at(outcome.final["destination"])
    told = [text for text in warnings_of(outcome) if "was not kept" in text]
    expect(len(told) == 1, f"that is said once: {warnings_of(outcome)}")
    shutil.rmtree(record)
    expect_moved(rig, vm, rig.run(vm, "migrate"))


def send_and_receive(rig):
    """The two halves apart: after send nobody runs the guest, receive runs it."""
    vm = rig.vm()
    expect_code(rig.run(vm, "send"), 0)
    vm.process.wait(20)
    expect(not vm.living(), "no VMM of the guest is there")
    expect(len(leftovers.attempts(rig.store)) == 1, "its image is on the store")
    expect_moved(rig, vm, rig.run(vm, "receive"))
    expect_code(rig.run(vm, "receive"), 0)
    expect_stayed(rig, vm)


def abort_before_commit(rig):
    """Abort and Ctrl-C at each point before COMMIT: exit 4, and the guest runs on where it was."""
    vm = rig.vm()
    for point in BEFORE_COMMIT:
        tool, let_go = rig.at_point(vm, "migrate", point, *LONG_FIRST_PASS)
        if point == "source.pass1":
            expect_code(rig.run(vm, "abort"), 0)
        else:
            tool.process.send_signal(signal.SIGINT)
            tool.wait_stderr("interrupted: aborting", 10)
        let_go()
        expect_code(tool.wait(40), 4)
        print(f"     {point}:")
        expect_stayed(rig, vm)
    expect_moved(rig, vm, rig.run(vm, "migrate"))


def abort_after_commit(rig):
    """After COMMIT there is no way back: Ctrl-C is heard, and the guest arrives."""
    vm = rig.vm()
    for point in ("source.after-shut", "source.after-release"):
        tool, let_go = rig.at_point(vm, "migrate", point)
        tool.process.send_signal(signal.SIGINT)
        let_go()
        print(f"     {point}:")
        expect_moved(rig, vm, tool.wait(40))


def kill_source_tool(rig):
    """kill -9 of the tool before COMMIT: the guest runs on, a second attempt succeeds."""
    vm = rig.vm()
    for point in BEFORE_COMMIT:
        tool, _ = rig.at_point(vm, "migrate", point, *LONG_FIRST_PASS)
        tool.process.kill()
        tool.process.wait()
        print(f"     {point}:")
        vm.expect_works()
        expect_code(rig.run(vm, "recover", vm.vm), 0)
        vm.expect_works()
        expect_one_vmm(vm)
    expect_moved(rig, vm, rig.run(vm, "migrate"))


def kill_source_tool_late(rig):
    """kill -9 of the tool after COMMIT: nobody resumes the guest by himself; recover brings it
    back, or the destination has it already."""
    for point in ("source.after-shut", "source.after-release"):
        vm = rig.vm(name=f"vm-{point.rsplit('.', maxsplit=1)[-1]}")
        tool, _ = rig.at_point(vm, "send", point)
        expect(vm.status()["state"] == "paused", f"{point}: the guest is stopped")
        tool.process.kill()
        tool.process.wait()
        time.sleep(0.5)
        expect(vm.status()["state"] == "paused", "the guest stays stopped")
        outcome = rig.run(vm, "recover")
        expect_code(outcome, 0)
        vm.runs_at(outcome.final["destination"])
        vm.expect_works()
        expect_one_vmm(vm)


def kill_destination_tool(rig):
    """kill -9 of the destination's tool: the source's tool or recover brings the guest to its
    end."""
    for point in (
        "destination.prepared",
        "destination.loaded",
        "destination.after-owner",
        "destination.after-running",
        "destination.restoring",
    ):
        vm = rig.vm(name=f"vm-{point.rsplit('.', maxsplit=1)[-1]}")
        outcome = rig.run(vm, "migrate", "--fail-at", f"{point}=kill")
        expect(outcome.code in (0, 1), f"{point}: the guest runs: {said(outcome)}")
        if outcome.code == 0:
            vm.runs_at(outcome.final["destination"])
        vm.expect_works()
        recovered = rig.run(vm, "recover", vm.vm)
        expect_code(recovered, 0)
        expect_one_vmm(vm)
        vm.expect_works()


def kill_pager(rig):
    """kill -9 of the pager while pages are missing: the guest waits, recover brings the rest."""
    vm = rig.vm()
    expect_code(rig.run(vm, "send"), 0)
    tool, _ = rig.at_point(vm, "receive", "destination.restoring", "--prefetch", "none")
    tool.process.kill()
    tool.process.wait()
    outcome = rig.run(vm, "recover")
    expect_moved(rig, vm, outcome)


def kill_vmm(rig):
    """A VMM that dies takes its guest with it before COMMIT: exit 8; a destination's before it ran
    does not."""
    vm = rig.vm()
    tool, let_go = rig.at_point(vm, "migrate", "source.before-shut")
    vm.kill(vm.pid)
    let_go()
    expect_code(tool.wait(40), 8)
    vm = rig.vm(name="other")
    tool, let_go = rig.at_point(vm, "migrate", "destination.prepared")
    for pid in vm.living() - {vm.pid}:
        os.kill(pid, signal.SIGKILL)
    let_go()
    expect_code(tool.wait(40), 1)
    vm.expect_works()
    expect_one_vmm(vm)


def wrong_machine(rig):
    """A destination of another machine is refused before the guest is stopped."""
    vm = rig.vm()
    command = f"exec {os.readlink(f'/proc/{vm.pid}/exe')} --incoming --hook {{socket}} --threads"
    command += f" --name {vm.name} --memory-mib 128"
    outcome = rig.run(vm, "migrate", "--incoming-command", command)
    expect_code(outcome, 1, "machine differs")
    expect_stayed(rig, vm)


def second_pager(rig):
    """While one tool moves the VM a second one is refused, and disturbs nothing."""
    vm = rig.vm()
    tool, let_go = rig.at_point(vm, "migrate", "source.pass1", *LONG_FIRST_PASS)
    expect_code(rig.run(vm, "migrate"), 3)
    expect_code(rig.run(vm, "check"), 0)
    status = rig.run(vm, "status").final
    expect(status["source"]["status"] == "active", f"status of the tool: {status}")
    seen = [entry for entry in status["vmms"] if entry["pid"] == vm.pid]
    expect(
        seen and seen[0]["state"] == "moving" and seen[0]["progress"]["phase"] == "brownout",
        f"the hook shows what its pager does: {status['vmms']}",
    )
    let_go()
    expect_moved(rig, vm, tool.wait(60))


def refusals(rig):
    """What is wrong is said in one line, and nothing is touched."""
    vm = rig.vm()
    nobody = vm.start("migrate", "--store", rig.store, "--to", "local", vm=False)
    expect_code(nobody.wait(20), 2)
    socket, vm.socket = vm.socket, Path("/nonexistent/vm.sock")
    expect_code(rig.run(vm, "migrate"), 3)
    vm.socket = socket
    expect_code(rig.run(vm, "migrate", "--name", "a/b"), 2)
    expect_code(rig.run(vm, "migrate", "--incoming-command", "true"), 1, "{socket}")
    expect_stayed(rig, vm)


CASES = {
    case.__name__.replace("_", "-"): case
    for case in (
        two_moves,
        anonymous,
        recorded,
        touches_not_kept,
        send_and_receive,
        abort_before_commit,
        abort_after_commit,
        kill_source_tool,
        kill_source_tool_late,
        kill_destination_tool,
        kill_pager,
        kill_vmm,
        wrong_machine,
        second_pager,
        refusals,
    )
} | {**hook_base_cases.CASES, **hook_move_on_cases.CASES}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="+", choices=sorted(CASES), metavar="CASE")
    parser.add_argument(
        "--keeping-store",
        action="store_true",
        help="the store keeps files that are removed while open, as NFS does",
    )
    arguments = parser.parse_args()
    for name in arguments.case:
        started = time.monotonic()
        print(f"--- {name}: {' '.join(CASES[name].__doc__.split())}", flush=True)
        with HookRig() as rig:
            with file_keeping_store(rig) if arguments.keeping_store else nullcontext():
                CASES[name](rig)
        print(f"--- {name}: {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
