"""A small QMP client: one command at a time, every event kept with the time it happened at.

Events carry QEMU's own time stamp (wall clock, microseconds); `Event.at` is that stamp moved to
this process's monotonic clock, so that it can be compared with the times of heartbeats. Used by one
thread at a time.
"""

import json
import socket
import time
from dataclasses import dataclass


class QmpError(Exception):
    """QEMU refused a command, closed the monitor, or did not answer in time."""


@dataclass(frozen=True)
class Event:
    name: str
    data: dict
    at: float  # time.monotonic()


class Qmp:
    def __init__(self, path, timeout_s=10.0):
        self.path = path
        self.events = []
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        self._timeout_s = timeout_s
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._socket.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as error:
                if time.monotonic() > deadline:
                    raise QmpError(f"{path}: {error}") from error
                time.sleep(0.01)
        self._read_until(lambda message: "QMP" in message, deadline)
        self.command("qmp_capabilities")

    def close(self):
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _read_message(self, deadline):
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise QmpError(f"{self.path}: no answer in time")
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(65536)
            except TimeoutError as error:
                raise QmpError(f"{self.path}: no answer in time") from error
            except OSError as error:
                raise QmpError(f"{self.path}: {error}") from error
            if not data:
                raise QmpError(f"{self.path}: QEMU closed the monitor")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def _note_event(self, message):
        stamp = message["timestamp"]
        wall = stamp["seconds"] + stamp["microseconds"] / 1e6
        at = wall - time.time() + time.monotonic()
        self.events.append(Event(message["event"], message.get("data", {}), at))

    def _read_until(self, wanted, deadline):
        while True:
            message = self._read_message(deadline)
            if "event" in message:
                self._note_event(message)
            if wanted(message):
                return message

    def command(self, name, timeout_s=None, **arguments):
        request = {"execute": name}
        if arguments:
            request["arguments"] = {
                key.replace("_", "-"): value for key, value in arguments.items()
            }
        return self.raw(request, timeout_s)

    def raw(self, request, timeout_s=None):
        """Sends a request as it is; returns QEMU's `return`."""
        deadline = time.monotonic() + (timeout_s or self._timeout_s)
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise QmpError(f"{self.path}: {error}") from error
        return self._reply_to(request["execute"], deadline)

    def answer(self, timeout_s):
        """The `return` of a request that was not answered in its time."""
        return self._reply_to("late", time.monotonic() + timeout_s)

    def _reply_to(self, name, deadline):
        message = self._read_until(lambda m: "return" in m or "error" in m, deadline)
        if "error" in message:
            raise QmpError(f"{name}: {message['error']['desc']}")
        return message["return"]

    def wait_event(self, name, timeout_s, where=lambda data: True):
        """The first event of that name, past ones included, whose data satisfy `where`."""
        deadline = time.monotonic() + timeout_s
        seen = 0
        while True:
            for event in self.events[seen:]:
                if event.name == name and where(event.data):
                    return event
            seen = len(self.events)
            message = self._read_message(deadline)
            if "event" in message:
                self._note_event(message)

    def drain(self):
        """Takes in what has arrived, without waiting."""
        self._socket.setblocking(False)
        try:
            while True:
                data = self._socket.recv(65536)
                if not data:
                    break
                self._buffer += data
        except OSError:
            pass
        while b"\n" in self._buffer:
            line, self._buffer = self._buffer.split(b"\n", 1)
            message = json.loads(line)
            if "event" in message:
                self._note_event(message)

    def status(self, timeout_s=None):
        return self.command("query-status", timeout_s)["status"]

    def last_event(self, name, since=0.0):
        found = [event for event in self.events if event.name == name and event.at >= since]
        return found[-1] if found else None
