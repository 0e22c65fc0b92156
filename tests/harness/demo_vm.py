"""A running demo VMM (tools/demo_vmm) and its guest, which judges its own memory.

The VMM that runs the guest changes with every move; the run directory and the word of the tool say
which one it is.
"""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import ferry
import machine
import processes
from statements import expect


def demo_vmm():
    """The program, beside pageferry's in the build directory."""
    named = os.environ.get("DEMO_VMM")
    return named or str(Path(machine.pageferry()).parents[1] / "demo_vmm" / "demo_vmm")


class DemoVm:
    """`name`: on the store. `vcpus`: "threads" or "kvm". Ended with stop(), wherever the guest is by
    then."""

    def __init__(self, directory, name="demo", memory_mib=64, options=(), vcpus="threads"):
        self.directory = Path(directory)
        self.name = name
        self.run_directory = self.directory / "run"
        self.socket = self.directory / "vm.sock"
        arguments = ["--hook", self.socket, "--name", name, "--memory-mib", memory_mib]
        if vcpus == "threads" and not any("kvm" in str(option) for option in options):
            arguments.append("--threads")
        self._log = open(self.directory / "vm.log", "wb")  # noqa: SIM115: the process has it
        self.process = subprocess.Popen(
            [demo_vmm(), *map(str, arguments), *map(str, options)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self.pid = self.process.pid
        self.pids = {self.pid}
        try:
            self._wait(lambda: self.status()["filled"], "the guest works")
        except SystemExit:
            self.stop()  # nobody has it yet
            raise

    def _wait(self, condition, what, timeout_s=30):
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if condition():
                    return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise SystemExit(f"FAIL not within {timeout_s} s: {what}")
            time.sleep(0.01)

    def log(self):
        return (self.directory / "vm.log").read_text()

    def ask(self, kind, **members):
        """What the VMM that runs the guest answers on its control socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(f"{self.socket}.control")
            stream = connection.makefile("rw")
            stream.write(json.dumps({"type": kind, **members}) + "\n")
            stream.flush()
            return json.loads(stream.readline())

    def status(self):
        return self.ask("status")

    def runs_at(self, destination):
        """As the tool said it: {"pid":, "hook":}."""
        self.pid, self.socket = destination["pid"], Path(destination["hook"])
        self.pids.add(self.pid)

    @property
    def vm(self):
        return f"hook:{self.socket}"

    def start(self, command, *options, vm=True):
        """A pageferry command about this VM that is under way."""
        words = [command, *([self.vm] if vm else []), *options, "--run-dir", self.run_directory]
        return ferry.Running(*words)

    def expect_works(self):
        """The guest works on, and finds nothing wrong in all of its memory."""
        before = self.status()["heartbeats"]
        self._wait(lambda: self.status()["heartbeats"] > before + 20, "the guest works on")
        verdict = self.ask("check")
        expect(
            verdict["bad-pages"] == 0 and verdict["state"] == "running",
            f"the guest finds no bad page in all of its memory: {verdict}",
        )

    def kill(self, pid, number=signal.SIGKILL):
        os.kill(pid, number)
        if pid == self.process.pid and number == signal.SIGKILL:
            self.process.wait()

    def living(self):
        """VMMs of the guest that are there, by pid."""
        self.process.poll()
        needles = (str(self.run_directory), str(self.directory / "vm.sock"))
        return {
            pid
            for pid in processes.all_pids()
            if any(n in w for w in processes.command_line(pid) or [] for n in needles)
            and os.path.basename(processes.command_line(pid)[0]) == "demo_vmm"
            and processes.state(pid) not in (None, "Z", "X")
        }

    def stop(self):
        for pid in self.living():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()
