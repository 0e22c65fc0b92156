"""Watches from outside that a guest never runs in two QEMUs.

Two witnesses that do not trust the tool under test: query-status of every QEMU with the VM's UUID,
asked over the harness's own monitor about twenty times a second, and the heartbeats, which carry a
counter of the guest's own. One QEMU is asked after the other, so "both running" is only said when A
was seen running, then B, then A again, at unchanged A.
"""

import threading
import time

import heartbeats
from qmp import Qmp, QmpError

_PERIOD_S = 0.05


class Watcher:
    def __init__(self, guest):
        self._guest = guest
        self._monitors = {}  # pid -> Qmp
        self._violations = []
        self._polls = 0
        self._rounds = 0
        self._last_running = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self._stop.set()
        self._thread.join()

    def wait_for_first_look(self, timeout_s=30):
        """Until a QEMU of the guest has answered: what happens before was not watched."""
        deadline = time.monotonic() + timeout_s
        while not self._polls:
            if time.monotonic() > deadline:
                raise TimeoutError("the watcher does not reach a monitor of the guest")
            time.sleep(_PERIOD_S)

    def running_pids(self, timeout_s=30):
        """Pids of the QEMUs that run the guest, from a look that began after this call."""
        wanted = self._rounds + 2
        deadline = time.monotonic() + timeout_s
        while self._rounds < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError("the watcher does not look any more")
            time.sleep(_PERIOD_S)
        return list(self._last_running)

    def violations(self):
        """One line of text each; empty if the guest never ran twice. Fails if nothing could be
        watched."""
        if not self._polls:
            return ["the watcher never reached a monitor of the guest"]
        beats = self._guest.follower.snapshot()
        return (
            self._violations
            + heartbeats.interleaved_streams(beats)
            + heartbeats.repeated_counters(beats)
        )

    def _run(self):
        while not self._stop.wait(_PERIOD_S):
            for process in self._guest.follower.qemus():
                if process.pid not in self._monitors:
                    self._connect(process)
            first = self._running()
            self._last_running = first
            self._rounds += 1
            if len(first) > 1:
                again = self._running()
                both = sorted(set(first) & set(again))
                if len(both) > 1:
                    self._violations.append(
                        f"{time.monotonic():.3f}: QEMUs {both} both run the guest"
                    )
        for monitor in self._monitors.values():
            monitor.close()

    def _connect(self, process):
        path = process.watch_socket()
        if not path:
            return
        try:
            self._monitors[process.pid] = Qmp(path, timeout_s=1.0)
        except QmpError:
            pass  # still starting, or already gone: asked again on the next round

    def _running(self):
        running = []
        for pid, monitor in list(self._monitors.items()):
            try:
                status = monitor.status(timeout_s=2.0)
                monitor.events.clear()
            except QmpError:
                monitor.close()
                del self._monitors[pid]
                continue
            self._polls += 1
            if status == "running":
                running.append(pid)
        return running
