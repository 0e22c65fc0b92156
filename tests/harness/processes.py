"""QEMU processes as /proc shows them: which belong to a virtual machine, and where their monitors
and serial lines are.

A virtual machine is known by its UUID (-uuid), which every QEMU that ever runs it carries on its
command line. So the QEMUs of a migration's destination are found without asking the tool that
started them.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class QemuProcess:
    pid: int
    arguments: tuple = field(hash=False)

    @property
    def stream(self):
        return f"qemu-{self.pid}"

    def _options(self, name):
        return [value for key, value in zip(self.arguments, self.arguments[1:]) if key == name]

    def monitors(self):
        """Paths of all QMP sockets, in the order of the command line."""
        paths = [_socket_path(value) for value in self._options("-qmp")]
        for value in self._options("-mon"):
            chardev = _fields(value).get("chardev") or value.split(",")[0]
            paths.append(self._chardev(chardev).get("path"))
        return [self._absolute(path) for path in paths if path]

    def watch_socket(self):
        """The monitor that is the harness's own: `watch.sock`, wherever a tool has moved it to."""
        named = [path for path in self.monitors() if os.path.basename(path) == "watch.sock"]
        return named[0] if named else None

    def serial_log(self):
        path = self._chardev("serial0").get("path")
        return self._absolute(path) if path else None

    def command_socket(self):
        path = self._chardev("commands").get("path")
        return self._absolute(path) if path else None

    def incoming(self):
        return "-incoming" in self.arguments

    def _chardev(self, name):
        for value in self._options("-chardev"):
            fields = _fields(value)
            if fields.get("id") == name:
                return fields
        return {}

    def _absolute(self, path):
        try:
            return os.path.join(os.readlink(f"/proc/{self.pid}/cwd"), path)
        except OSError:
            return path

    def alive(self):
        """Neither gone nor a zombie."""
        return state(self.pid) not in (None, "Z", "X")


def _fields(option):
    return dict(part.split("=", 1) for part in option.split(",") if "=" in part)


def _socket_path(option):
    match = re.match(r"unix:([^,]+)", option)
    return match.group(1) if match else _fields(option).get("path")


def state(pid):
    """The state letter of /proc/PID/stat, or None."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return None


def command_line(pid):
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return ()
    return tuple(word.decode(errors="replace") for word in words)


def all_pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def qemus_of(uuid):
    found = []
    for pid in all_pids():
        words = command_line(pid)
        if words and "qemu-system" in words[0] and uuid in words:
            process = QemuProcess(pid, words)
            if process.alive():
                found.append(process)
    return found
