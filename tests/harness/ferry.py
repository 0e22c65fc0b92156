"""Runs the program under test as a user does, `pageferry ... --json`, and keeps what it said and
when.

A JSON line is kept with the moment it was read. The exit code says where the guest is; EXIT names
the codes.
"""

import json
import os
import subprocess
import threading
import time
from dataclasses import dataclass, field

import machine

EXIT = {
    0: "done",
    1: "failed, runs on the source",
    2: "usage",
    3: "refused",
    4: "aborted, runs on the source",
    5: "another candidate won",
    6: "timeout, runs on the source",
    7: "runs nowhere, image intact",
    8: "state lost",
}


@dataclass
class Outcome:
    code: int
    objects: list = field(default_factory=list)  # (time.monotonic(), dict)
    stderr: str = ""
    started: float = 0.0
    ended: float = 0.0

    @property
    def final(self):
        return self.objects[-1][1] if self.objects else {}

    @property
    def destination(self):
        """(pid, QMP path) of the QEMU that runs the guest now."""
        named = self.final["destination"]
        return named["pid"], named["qmp"]

    def first_time(self, where):
        """When the first object that satisfies `where` was read, or None."""
        return next((at for at, value in self.objects if where(value)), None)

    def explain(self):
        told = [value for _, value in self.objects if value.get("event") in ("error", "warning")]
        return f"{told} exit {self.code} ({EXIT.get(self.code, 'unknown')}): {self.final} {self.stderr.strip()}"


class Running:
    """A pageferry process; its output is read in a thread."""

    def __init__(self, *arguments, pass_json=True, environment=None):
        command = [machine.pageferry(), *map(str, arguments)] + (["--json"] if pass_json else [])
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self._objects = []
        self._errors = []
        self._condition = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read_objects, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_objects(self):
        for line in self.process.stdout:
            at = time.monotonic()
            try:
                value = json.loads(line)
            except ValueError:
                value = {"not-json": line}
            with self._condition:
                self._objects.append((at, value))
                self._condition.notify_all()

    def _read_errors(self):
        for line in self.process.stderr:
            with self._condition:
                self._errors.append(line)
                self._condition.notify_all()

    def wait_object(self, where, timeout_s):
        """The first object, past ones included, that satisfies `where`."""
        with self._condition:
            said = self._condition.wait_for(
                lambda: [value for _, value in self._objects if where(value)], timeout_s
            )
            if not said:
                raise TimeoutError(f"not said within {timeout_s} s; last: {self._objects[-1:]}")
            return said[0]

    def wait_stderr(self, text, timeout_s):
        """Until a line with that text was said on stderr; TimeoutError if none comes."""
        with self._condition:
            if not self._condition.wait_for(
                lambda: any(text in line for line in self._errors), timeout_s
            ):
                raise TimeoutError(f"{text!r} was not said within {timeout_s} s: {self._errors}")

    def wait(self, timeout_s=300):
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        ended = time.monotonic()
        for reader in self._readers:
            reader.join(5)
        return Outcome(code, list(self._objects), "".join(self._errors), self.started, ended)


def start_migration(guest, store, *options, environment=None):
    """`migrate --to local` of the QEMU that runs the guest now; the tool's run directory is in the
    guest's directory."""
    return Running(
        "migrate",
        f"qemu:{guest.qmp_path}",
        "--store",
        store,
        "--to",
        "local",
        "--run-dir",
        run_directory(guest),
        *options,
        environment=environment,
    )


def migrate(guest, store, *options, timeout_s=300):
    """A whole migration; on success the guest object knows its new QEMU."""
    return end_migration(guest, start_migration(guest, store, *options), timeout_s)


def end_migration(guest, running, timeout_s=300):
    """Waits for a migration that was started; on success the guest object knows its new QEMU."""
    outcome = running.wait(timeout_s)
    if outcome.code == 0:
        guest.adopt(*outcome.destination)
    guest.reap()
    return outcome


def run_directory(guest):
    return guest.directory / "pf"
