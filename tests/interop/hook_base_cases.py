"""Cases of --base: a guest that comes back to a store which still holds its last image."""

import shutil

import leftovers
from hook_statements import (
    expect_code,
    expect_moved,
    expect_one_vmm,
    expect_stayed,
    warnings_of,
)
from statements import expect


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


def kept_image(rig):
    """The one page file that a move with --keep left."""
    found = leftovers.attempts(rig.store)
    expect(len(found) == 1, f"one image is on the store: {found}")
    return found[0] / "pages"


def moved_and_kept(rig):
    """A guest that was moved once, what that said, and the image that it left."""
    vm = rig.vm(memory_mib=256, options=("--working-set-mib", "32"))
    outcome = rig.run(vm, "migrate", "--keep")
    expect_code(outcome, 0)
    vm.runs_at(outcome.final["destination"])
    return vm, outcome, kept_image(rig)


def base(rig):
    """There and back and there again over the image that is still on the store: only what changed
    since is written, the old image may go, and no page is wrong. Needs a hook that follows writes
    from the restore on."""
    vm, first, image = moved_and_kept(rig)
    vm.expect_works()
    written = first.final["page-file"]["written"]
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
        image = kept_image(rig)
        linked = {path.stat().st_ino for path in image.parent.glob("base.*")}
        expect(before in linked, "the old page file lives on as a base of the new one")
    # A full write: the guest needs no base any more, and none stays.
    expect_moved(rig, vm, rig.run(vm, "migrate"))


def bad_base(rig):
    """A base that is damaged where the guest has not written: --verify finds it while the guest
    runs at the source. A base that is gone costs the base, not the move."""
    vm, _, image = moved_and_kept(rig)
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
    vm, _, image = moved_and_kept(rig)
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
    kept_image(rig)
    expect_moved(rig, vm, rig.run(vm, "migrate"))


CASES = {
    case.__name__.replace("_", "-"): case
    for case in (
        no_base,
        base,
        bad_base,
        kill_base_linked,
    )
}
