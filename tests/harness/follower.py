"""Follows one guest from QEMU to QEMU: reads every serial line it may appear on, in one thread.

The guest's first serial port (chardev serial0) is a file. The follower looks for QEMUs with the VM's
UUID (a destination is found while it is being prepared, before the guest runs there) and reads their
files about every millisecond, which is the precision of Beat.at.

A QEMU may append to the file of the one before it (pageferry lets it) or have one of its own. The
guest can be stopped in the middle of a line: the first line of a new stream continues the
unfinished line of the last. Lines that are not heartbeats are kept in `lines`. Thread rule: read
`beats` and `lines` through snapshot() and texts().
"""

import os
import threading
import time

import heartbeats
import processes

_POLL_S = 0.001
_SCAN_S = 0.1


class _Stream:
    """One log file. Several QEMUs may append to it, one after the other."""

    def __init__(self, name, fd):
        self.name = name
        self.fd = fd
        self.partial = b""
        self.spoke = False


class Follower:
    def __init__(self, uuid):
        self._uuid = uuid
        self._lock = threading.Condition()
        self._streams = {}  # by device and inode of the log
        self._alive = []
        self._known = set()  # pids whose log has been found
        self._beats = []
        self._lines = []  # (at, stream name, text)
        self._speaking = None
        self._stop = False
        self._failure = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self):
        self._stop = True
        self._thread.join()
        while self._streams:
            os.close(self._streams.popitem()[1].fd)

    def qemus(self):
        """The QEMUs of the guest as of the last look, at most _SCAN_S ago; for those who look
        often."""
        with self._lock:
            return list(self._alive)

    def snapshot(self):
        """All heartbeats so far, in the order of arrival."""
        with self._lock:
            if self._failure:
                raise self._failure
            return list(self._beats)

    def texts(self, since=0.0):
        """(time, stream, text) of all other lines since then."""
        with self._lock:
            return [line for line in self._lines if line[0] >= since]

    def wait_text(self, prefix, timeout_s, since=0.0):
        """The first other line since then that begins like that; TimeoutError if none comes."""
        return self._wait(
            lambda: next(
                (
                    (at, stream, text)
                    for at, stream, text in self._lines
                    if at >= since and text.startswith(prefix)
                ),
                None,
            ),
            timeout_s,
            repr(prefix),
        )

    def wait_beat(self, where, timeout_s):
        """The last heartbeat, as soon as it satisfies `where`."""
        return self._wait(
            lambda: self._beats[-1] if self._beats and where(self._beats[-1]) else None,
            timeout_s,
            "a heartbeat",
        )

    def _wait(self, find, timeout_s, what):
        deadline = time.monotonic() + timeout_s
        with self._lock:
            while True:
                found = find()
                if found is not None:
                    return found
                left = deadline - time.monotonic()
                if self._failure:
                    raise self._failure
                if left <= 0:
                    last = self._lines[-3:] + self._beats[-1:]
                    raise TimeoutError(f"{what} was not seen in {timeout_s} s; last seen: {last}")
                self._lock.wait(left)

    def _run(self):
        next_scan = 0.0
        try:
            while not self._stop:
                now = time.monotonic()
                if now >= next_scan:
                    self._scan()
                    next_scan = now + _SCAN_S
                for stream in list(self._streams.values()):
                    data = os.read(stream.fd, 1 << 20)
                    if data:
                        self._take(stream, data, time.monotonic())
                time.sleep(_POLL_S)
        except Exception as error:  # handed to whoever asks for the beats
            with self._lock:
                self._failure = error
                self._lock.notify_all()

    def _scan(self):
        alive = {process.pid: process for process in processes.qemus_of(self._uuid)}
        with self._lock:
            self._alive = list(alive.values())
        for process in alive.values():
            if process.pid not in self._known:
                self._open_log(process)

    def _open_log(self, process):
        path = process.serial_log()
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path else None
        except FileNotFoundError:
            return  # not there yet: looked for again
        self._known.add(process.pid)
        if fd is None:
            return
        file = os.fstat(fd)
        if (file.st_dev, file.st_ino) in self._streams:
            os.close(fd)
        else:
            self._streams[(file.st_dev, file.st_ino)] = _Stream(process.stream, fd)

    def _take(self, stream, data, at):
        with self._lock:
            if not stream.spoke:
                stream.spoke = True
                if self._speaking is not None:
                    stream.partial = self._speaking.partial
                    self._speaking.partial = b""
                self._speaking = stream
            *lines, stream.partial = (stream.partial + data).split(b"\n")
            for line in lines:
                beat = heartbeats.parse_beat(line, at, stream.name)
                if beat:
                    self._beats.append(beat)
                else:
                    self._lines.append(
                        (at, stream.name, line.rstrip(b"\r").decode(errors="replace"))
                    )
            self._lock.notify_all()
