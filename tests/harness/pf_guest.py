"""The guest of tests/guest in a QEMU of ours: start it, talk to it, follow it wherever it is moved,
judge its memory.

    with Guest(Config(version="10", memory_mib=1024, fill_mib=600, dirty_mib_s=50,
    dirty_ws_mib=128), directory) as guest:
        guest.wait_ready()
        ...                                 # move it; the follower finds the new QEMU by its UUID
        assert guest.full_check() == 0

Two QMP monitors: the first for the tool that moves the guest, the second for the harness (QMP
serves one client at a time). Two serial ports: what the guest says goes into a file (chardev
serial0; QEMU writes every byte of it, whoever looks or not: a socket drops or repeats bytes when its
reader is late), commands come from a socket (chardev commands).

QEMU 7.2 under TCG loses dirty pages unless the RAM size is no multiple of 256 KiB; Config sees to
that. Used by one thread.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import heartbeats
import machine
import processes
from follower import Follower
from qmp import Qmp, QmpError

_MACHINES = {"7.2": "pc-i440fx-7.2", "10": "pc-i440fx-10.0"}
_ODD_KIB = 4


@dataclass
class Config:
    version: str = "10"  # of QEMU: "7.2" or "10"
    memory_mib: int = 1024
    fill_mib: int = 600
    dirty_mib_s: int = 0
    dirty_ws_mib: int = 64
    read_mib_s: int = 5
    pattern: str = "random"
    heartbeat_ms: int = 10
    machine: str = ""  # default: i440fx of that version, versioned
    backend: str = "default"  # default, memfd, or file:DIRECTORY (share=on)
    extra: list = field(default_factory=list)  # further QEMU arguments
    user: tuple = ()  # (uid, gid) that QEMU runs as; empty: as the test

    def memory_kib(self, accelerator):
        odd = self.version == "7.2" and accelerator == "tcg"
        return self.memory_mib * 1024 + (_ODD_KIB if odd else 0)

    def parameters(self):
        names = ("fill_mib", "dirty_mib_s", "dirty_ws_mib", "read_mib_s", "pattern", "heartbeat_ms")
        return {name: getattr(self, name) for name in names}


def qemu_arguments(config, vm_uuid, run_directory, accelerator):
    """Everything but monitors' `-incoming`: the command line of the guest with its sockets and logs
    in run_directory."""
    kib = config.memory_kib(accelerator)
    arguments = [
        machine.qemu(config.version),
        "-name",
        f"pageferry-{vm_uuid[:8]}",
        "-uuid",
        vm_uuid,
        "-accel",
        accelerator,
    ]
    kind = config.machine or _MACHINES[config.version]
    if config.backend == "default":
        arguments += ["-machine", kind]
    else:
        arguments += [
            "-machine",
            f"{kind},memory-backend=mem0",
            "-object",
            _backend(config.backend, kib, run_directory),
        ]
    if accelerator == "kvm":
        arguments += ["-cpu", "host"]
    arguments += [
        "-m",
        f"{kib}K",
        "-smp",
        "1",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-qmp",
        f"unix:{run_directory}/qmp.sock,server=on,wait=off",
        "-qmp",
        f"unix:{run_directory}/watch.sock,server=on,wait=off",
        "-chardev",
        f"file,id=serial0,path={run_directory}/serial.log,append=on",
        "-serial",
        "chardev:serial0",
        "-chardev",
        f"socket,id=commands,path={run_directory}/commands.sock,server=on,wait=off",
        "-serial",
        "chardev:commands",
    ]
    return arguments + machine.boot_guest_arguments(config.parameters()) + config.extra


def _backend(backend, kib, run_directory):
    if backend == "memfd":
        return f"memory-backend-memfd,id=mem0,size={kib}K,share=on"
    if backend.startswith("file:"):
        return f"memory-backend-file,id=mem0,size={kib}K,share=on,mem-path={backend[5:]}/{os.path.basename(run_directory)}"
    raise ValueError(f"memory backend {backend}")


class Guest:
    def __init__(self, config, directory):
        self.config = config
        self.directory = Path(directory)
        self.uuid = str(uuid.uuid4())
        self.accelerator = machine.accelerator(config.version)
        self.pid = 0
        self.qmp_path = ""
        self._children = []
        self._runs = 0
        self.follower = Follower(self.uuid)

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    # --- QEMUs ---------------------------------------------------------------------------------------------------------

    def start(self, incoming=None, qemu_options=()):
        """Starts a QEMU for this guest (with -incoming: as a destination). Returns its QMP path."""
        self._runs += 1
        run_directory = self.directory / f"run{self._runs}"
        run_directory.mkdir(parents=True)
        arguments = qemu_arguments(
            self.config, self.uuid, str(run_directory), self.accelerator
        ) + list(qemu_options)
        if incoming:
            arguments += ["-incoming", incoming]
        if self.config.user:
            uid, gid = self.config.user
            os.chown(run_directory, uid, gid)
            arguments = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", *arguments]
        with open(run_directory / "qemu.log", "wb") as log:
            child = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._children.append(child)
        path = str(run_directory / "qmp.sock")
        if not incoming:
            self.pid, self.qmp_path = child.pid, path
        return path

    def adopt(self, pid, qmp_path):
        """The guest now runs in that QEMU (final JSON of the tool:
        "destination":{"pid":N,"qmp":"PATH"})."""
        self.pid, self.qmp_path = pid, qmp_path

    def process(self):
        return processes.QemuProcess(self.pid, processes.command_line(self.pid))

    def watch_path(self):
        """The harness's own monitor of the QEMU that runs the guest now."""
        path = self.process().watch_socket()
        if not path:
            raise RuntimeError(f"QEMU {self.pid} has no watch.sock: {self.process().arguments}")
        return path

    def watch(self):
        return Qmp(self.watch_path())

    def reap(self):
        """Ends the zombies among our own children, so that /proc shows what is alive."""
        for child in self._children:
            child.poll()

    def condition(self):
        """What can be said from outside about a guest that is silent; one line of text."""
        said = [
            f"{path}: {path.stat().st_size} bytes"
            for path in self.directory.glob("run*/serial.log")
        ]
        try:
            with self.watch() as monitor:
                registers = monitor.command("human-monitor-command", command_line="info registers")
                said += [monitor.status(), *re.findall(r"RIP=\S+|HLT=\S+", registers)]
        except (QmpError, RuntimeError, OSError) as error:
            said.append(str(error))
        return " ".join([f"QEMU {self.pid} is {processes.state(self.pid)}", *said, self.qemu_log()])

    def qemu_log(self):
        return "".join(
            path.read_text(errors="replace")
            for path in sorted(self.directory.glob("run*/qemu.log"))
        )

    def close(self):
        """Ends every QEMU of this guest, wherever a tool may have started it."""
        for process in processes.qemus_of(self.uuid):
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for child in self._children:
            child.wait()
        self.follower.close()
        for run_directory in (*self.directory.glob("run*"), self.directory / "pf"):
            shutil.rmtree(run_directory, ignore_errors=True)

    # --- the guest -----------------------------------------------------------------------------------------------------

    def wait_ready(self, timeout_s=300):
        try:
            self.follower.wait_text("PF-READY", timeout_s)
            return self.follower.wait_beat(lambda beat: True, 10)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {self.condition()}") from error

    def ask(self, command, answer, timeout_s=120):
        """Sends a one-byte command; waits for the line that begins with `answer`, and returns it."""
        since = time.monotonic()
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(self.process().command_socket())
            line.sendall(command.encode())
            return self.follower.wait_text(answer, timeout_s, since)[2]

    def full_check(self, timeout_s=120):
        """Checks every page; returns the number of bad ones."""
        answer = self.ask("c", "PF-CHECK", timeout_s)
        return int(answer.rsplit("bad=", 1)[1])

    def flip_a_bit(self):
        return self.ask("f", "PF-FLIP")

    def pause_dirtying(self):
        self.ask("p", "PF-PAUSED")

    def resume_dirtying(self):
        self.ask("r", "PF-RESUMED")

    def verdict(self):
        """Everything that is wrong with the guest so far, one line of text each; empty if nothing
        is."""
        beats = self.follower.snapshot()
        wrong = [
            text
            for _, _, text in self.follower.texts()
            if text.startswith(("PF-BAD", "PF-DEAD")) or "panic" in text
        ]
        others = [text for _, _, text in self.follower.texts()]
        wrong += [f"not a line of the guest: {text!r}" for text in others if not _is_known(text)]
        if not beats:
            return wrong + ["no heartbeat was seen"]
        if beats[-1].bad:
            wrong.append(f"{beats[-1].bad} bad pages")
        return wrong + heartbeats.counter_faults(beats) + heartbeats.interleaved_streams(beats)


def _is_known(text):
    """A line that the guest program or its kernel says; anything else lost bytes on the way."""
    return not text or text.startswith("PF-") or text.startswith("[")
