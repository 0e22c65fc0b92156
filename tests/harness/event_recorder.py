"""Every QMP event of every QEMU of a guest, with its time: from the harness's own monitors, in a
thread.

STOP at the source to RESUME at the destination is the downtime as QEMU sees it. Nothing is asked,
so that nothing is disturbed.
"""

import threading
import time

from qmp import Qmp, QmpError

_PERIOD_S = 0.05


class EventRecorder:
    def __init__(self, guest):
        self._guest = guest
        self._monitors = {}
        self._lock = threading.Lock()
        self._events = []  # (pid, Event)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        for monitor in self._monitors.values():
            monitor.close()

    def _run(self):
        while not self._stop.is_set():
            for process in self._guest.follower.qemus():
                path = process.watch_socket()
                if path and process.pid not in self._monitors:
                    try:
                        self._monitors[process.pid] = Qmp(path, timeout_s=0.5)
                    except QmpError:
                        pass  # still starting: asked again on the next round
            for pid, monitor in self._monitors.items():
                monitor.drain()
                with self._lock:
                    self._events += [(pid, event) for event in monitor.events]
                monitor.events.clear()
            self._stop.wait(_PERIOD_S)

    def wait_for_monitors(self, count, timeout_s):
        """Returns when so many QEMUs of the guest are listened to: a QEMU that starts late has its
        first events missed."""
        deadline = time.monotonic() + timeout_s
        while len(self._monitors) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"only {len(self._monitors)} of {count} QEMUs answer")
            self._stop.wait(0.02)

    def times(self, name, since=0.0):
        """(time, pid) of every event of that name since then, in order of time."""
        with self._lock:
            return sorted(
                (event.at, pid)
                for pid, event in self._events
                if event.name == name and event.at >= since
            )

    def wait(self, name, since, timeout_s):
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.times(name, since)
            if found:
                return found[0]
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {name} event within {timeout_s} s")
            self._stop.wait(0.02)
