"""VMs of the demo VMM and a store for them, and pageferry's commands about them."""

import shutil
import tempfile
import time
from pathlib import Path

import machine
from demo_vm import DemoVm


class HookRig:
    def __init__(self):
        self.directory = Path(tempfile.mkdtemp(prefix="pf-"))
        self.store = Path(tempfile.mkdtemp(prefix="pf-store-", dir=machine.store_parent()))
        self._vms = []
        self._tools = []
        self._points = 0

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        for tool in self._tools:
            if tool.process.poll() is None:
                tool.process.kill()
        for vm in self._vms:
            if failure[0]:
                print(f"--- log of {vm.name}: {vm.log()}")
                for log in vm.run_directory.rglob("*.log"):
                    print(f"--- {log}: {log.read_text()}")
            vm.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.rmtree(self.store, ignore_errors=True)

    def vm(self, **settings):
        self._vms.append(DemoVm(tempfile.mkdtemp(prefix="v-", dir=self.directory), **settings))
        return self._vms[-1]

    def start(self, vm, command, *options):
        with_vm = command in ("migrate", "send", "check")
        where = ["--store", self.store] if command != "abort" else []
        named = [] if with_vm else ["--name", vm.name]
        to = ["--to", "local"] if command == "migrate" else []
        self._tools.append(vm.start(command, *where, *named, *to, *options, vm=with_vm))
        return self._tools[-1]

    def run(self, vm, command, *options, timeout_s=60):
        return self.start(vm, command, *options).wait(timeout_s)

    def at_point(self, vm, command, point, *options):
        """(tool, function that lets it go on): it has come to that point and waits there."""
        self._points += 1
        path = self.directory / f"go{self._points}"
        tool = self.start(vm, command, "--fail-at", f"{point}=wait:{path}", *options)
        deadline = time.monotonic() + 30
        while not path.with_name(path.name + ".reached").exists():
            if time.monotonic() > deadline or tool.process.poll() is not None:
                said_so = tool.wait(1).explain()
                raise SystemExit(f"FAIL {command} did not come to {point}: {said_so}")
            time.sleep(0.005)
        return tool, path.touch
