"""What is stated again and again of a VMM with a hook and of the commands on it."""

import leftovers
from statements import expect


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


def warnings_of(outcome):
    return [value["text"] for _, value in outcome.objects if value["event"] == "warning"]
