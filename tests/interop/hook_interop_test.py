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
import leftovers  # noqa: E402
import processes  # noqa: E402
from file_keeping_store import file_keeping_store  # noqa: E402
from hook_rig import HookRig  # noqa: E402
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


def said(outcome):
    errors = [value for _, value in outcome.objects if value["event"] == "error"]
    return f"{outcome.explain()} {errors}"


def expect_code(outcome, code, text=""):
    words = said(outcome)
    expect(outcome.code == code and text in words, f"exit {code}, says {text!r}: {words}")


def expect_one_vmm(vm):
    living = vm.living()
    expect(living == {vm.pid}, f"one VMM of the guest is there: {living}")


def expect_moved(rig, vm, outcome):
    before = vm.pid
    expect_code(outcome, 0)
    vm.runs_at(outcome.final["destination"])
    expect(vm.pid != before, "the guest runs in another VMM")
    vm.expect_works()
    expect_one_vmm(vm)
    expect(not leftovers.attempts(rig.store), "no image is left on the store")


def expect_stayed(rig, vm):
    vm.expect_works()
    expect_one_vmm(vm)
    expect(not leftovers.attempts(rig.store), "no image is left on the store")


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


def warnings_of(outcome):
    return [value["text"] for _, value in outcome.objects if value["event"] == "warning"]


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


def told_of_base(outcome):
    return [text for text in warnings_of(outcome) if "without a base" in text]


def no_base(rig):
    """--base auto for a guest that came from no image: one line says so, and everything is
    written. For QEMU it is refused."""
    vm = rig.vm()
    outcome = rig.run(vm, "migrate", "--base", "auto")
    expect_moved(rig, vm, outcome)
    expect(len(told_of_base(outcome)) == 1, f"that is said once: {warnings_of(outcome)}")
    expect("base" not in outcome.final, f"no base is named: {outcome.final}")
    expect(outcome.final["page-file"]["base-pages"] == 0, f"no page is in one: {outcome.final}")
    expect_code(rig.run(vm, "migrate", "--base", "attempt"), 2)
    qemu = ("qemu:/nonexistent", "--store", rig.store, "--to", "local", "--base", "auto")
    expect_code(vm.start("migrate", *qemu, vm=False).wait(20), 2)
    expect_stayed(rig, vm)


def kept_image(rig, vm):
    """The one page file that a move with --keep left."""
    found = leftovers.attempts(rig.store)
    expect(len(found) == 1, f"one image is on the store: {found}")
    return found[0] / "pages"


def base(rig):
    """There and back and there again over the image that is still on the store: only what changed
    since is written, the old image may go, and no page is wrong. Needs a hook that follows writes
    from the restore on."""
    vm = rig.vm(memory_mib=256, options=("--working-set-mib", "32"))
    first = rig.run(vm, "migrate", "--keep")
    expect_code(first, 0)
    vm.runs_at(first.final["destination"])
    vm.expect_works()
    written = first.final["page-file"]["written"]
    image = kept_image(rig, vm)
    for _ in range(2):
        before = image.stat().st_ino
        outcome = rig.run(vm, "migrate", "--base", "auto", "--keep", "--verify")
        expect_code(outcome, 0)
        expect(not told_of_base(outcome), f"the base is used: {warnings_of(outcome)}")
        expect(outcome.final["base"]["attempt"] == image.parent.name, f"{outcome.final}")
        figures = outcome.final["page-file"]
        expect(figures["base-pages"] > 0, f"pages stay in the base: {figures}")
        expect(
            figures["written"] < written / 2,
            f"{figures['written']} bytes are written, {written} were the first time",
        )
        vm.runs_at(outcome.final["destination"])
        vm.expect_works()
        expect_one_vmm(vm)
        image = kept_image(rig, vm)
        linked = {path.stat().st_ino for path in image.parent.glob("base.*")}
        expect(before in linked, "the old page file lives on as a base of the new one")
    # A full write: the guest needs no base any more, and none stays.
    expect_moved(rig, vm, rig.run(vm, "migrate"))


def bad_base(rig):
    """A base that is damaged where the guest has not written: --verify finds it while the guest
    runs at the source. A base that is gone costs the base, not the move."""
    vm = rig.vm(memory_mib=256, options=("--working-set-mib", "32"))
    outcome = rig.run(vm, "migrate", "--keep")
    expect_code(outcome, 0)
    vm.runs_at(outcome.final["destination"])
    image = kept_image(rig, vm)
    good = image.read_bytes()
    image.chmod(0o600)
    # All that was stored while the guest ran (docs/page-file-format.md): map and index are good.
    slots_at = int.from_bytes(good[80:88], "little")
    slots = int.from_bytes(good[4096 + 72 : 4096 + 80], "little")
    with open(image, "r+b") as file:
        file.seek(slots_at)
        file.write(bytes(4096 * slots))
    failed = rig.run(vm, "migrate", "--base", "auto", "--verify")
    expect_code(failed, 1)
    vm.expect_works()
    shutil.rmtree(image.parent)
    outcome = rig.run(vm, "migrate", "--base", "auto")
    expect(len(told_of_base(outcome)) == 1, f"that is said once: {warnings_of(outcome)}")
    expect_moved(rig, vm, outcome)


def kill_base_linked(rig):
    """kill -9 when the base's files have just been linked into the new attempt: the guest runs on, its
    image is unharmed, and the next move uses it again and removes what the dead one left."""
    vm = rig.vm(memory_mib=256, options=("--working-set-mib", "32"))
    first = rig.run(vm, "migrate", "--keep")
    expect_code(first, 0)
    vm.runs_at(first.final["destination"])
    image = kept_image(rig, vm)
    inode = image.stat().st_ino
    tool, _ = rig.at_point(vm, "migrate", "source.base-linked", "--base", "auto")
    tool.process.kill()
    tool.process.wait()
    vm.expect_works()
    expect(len(leftovers.attempts(rig.store)) == 2, "the dead attempt lies beside the image")
    expect(image.stat().st_ino == inode, "the image is where it was")
    outcome = rig.run(vm, "migrate", "--base", "auto", "--keep", "--verify")
    expect_code(outcome, 0)
    expect(not told_of_base(outcome), f"the base is used: {warnings_of(outcome)}")
    expect(outcome.final["base"]["attempt"] == image.parent.name, f"{outcome.final}")
    vm.runs_at(outcome.final["destination"])
    vm.expect_works()
    expect_one_vmm(vm)
    kept_image(rig, vm)
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
        two_moves,
        anonymous,
        recorded,
        touches_not_kept,
        no_base,
        base,
        bad_base,
        kill_base_linked,
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
