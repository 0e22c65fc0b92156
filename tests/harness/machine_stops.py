"""When this machine itself stood still, which no program on it can help.

A virtual machine may be stopped by its host: for work of the host's own, or because its share of the CPU is used up. Everything on
it then stands still for tens of milliseconds, and a benchmark measures the host. So a process with real-time priority on each CPU
wants to run every few milliseconds, and notes when it was late. On a machine of one's own it never is: nothing in user space can hold
it up.
"""

import os
import subprocess
import sys
import threading

_PERIOD_S = 0.004
_LATE_S = 0.003
_RUNS_AGAIN_MAX = 2

_WATCHER = """
import os, sys, time
cpu, period_s, late_s = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
os.sched_setaffinity(0, {cpu})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
print("ready", flush=True)
due = time.monotonic()
while True:
    due += period_s
    time.sleep(max(0.0, due - time.monotonic()))
    now = time.monotonic()
    if now - due > late_s:
        print(f"{due:.6f} {now:.6f}", flush=True)
        due = now
"""


class MachineStops:
    """Watches from the start of the block on. Needs the right to real-time priority (root)."""

    def __enter__(self):
        self._stops = []  # (from, to) on time.monotonic(), of all CPUs
        self._lock = threading.Lock()
        self._cpus = sorted(os.sched_getaffinity(0))
        self._watchers = []
        for cpu in self._cpus:
            arguments = [str(cpu), str(_PERIOD_S), str(_LATE_S)]
            self._watchers.append(
                subprocess.Popen(
                    [sys.executable, "-c", _WATCHER, *arguments], stdout=subprocess.PIPE, text=True
                )
            )
        for watcher in self._watchers:
            if watcher.stdout.readline() != "ready\n":
                self.__exit__()
                raise RuntimeError("no real-time priority for the watchers: see the line above")
            threading.Thread(target=self._read, args=(watcher.stdout,), daemon=True).start()
        return self

    def __exit__(self, *_):
        for watcher in self._watchers:
            watcher.kill()
            watcher.wait()

    def _read(self, lines):
        for line in lines:
            since, until = (float(word) for word in line.split())
            with self._lock:
                self._stops.append((since, until))

    def ms_per_cpu(self, since, until):
        """How long a CPU stood still between the two moments, on average."""
        with self._lock:
            stops = list(self._stops)
        inside = (min(until, b) - max(since, a) for a, b in stops if a < until and b > since)
        return 1000 * sum(inside) / len(self._cpus)


def undisturbed_run(label, stopped_ms_max, disturbed, run):
    """The figures of a run during which the machine ran on (`stopped-ms` says how long it did not); of the last
    one, if there was none. `disturbed` is given the others."""
    for again in range(_RUNS_AGAIN_MAX + 1):
        figures = run()
        is_disturbed = figures["stopped-ms"] > stopped_ms_max
        print(
            f"{label}: "
            + " ".join(f"{key}={value:.4g}" for key, value in figures.items())
            + (" DISTURBED" if is_disturbed else ""),
            flush=True,
        )
        if not is_disturbed or again == _RUNS_AGAIN_MAX:
            return figures
        disturbed.append(figures)
