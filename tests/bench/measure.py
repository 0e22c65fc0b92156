"""What is measured of one move, whatever moved the guest. All times come from outside the method
that is measured.

  eviction-s       start of the move -> the source may be powered off. For QEMU's own methods:
                   MIGRATION `completed` at the source (mapped-ram: the file is written). For
                   pageferry: its own eviction-time, which the harness cross-checks against the STOP
                   event (it cannot be earlier).
  downtime-ms      the silence that the guest's heartbeats show around the switch (includes one beat
                   period, 10 ms)
  stop-resume-ms   STOP event at the source -> RESUME event at the destination
  hb-1s, hb-5s     percent of the heartbeats due in the first second / 5 s after RESUME
  work-1s          pages dirtied in the first second after RESUME, percent of a second before the
                   move began
  silence-ms       longest silence after RESUME, in the first 5 s or until the guest is resident,
                   whichever is later
  resident-s       RESUME -> all of the guest's memory is at the destination
  resident-mib-s   guest memory that is not zero / resident-s; no number where all was there before
                   RESUME
  stopped-ms       how long the machine itself stood still, for each CPU on average (machine_stops.py), from the
                   start of the move until 5 s after RESUME or until the guest is resident
  storage-mib      space taken on the store at its largest (sampled)
"""

import threading
import time
from dataclasses import dataclass

import heartbeats
import leftovers

FIGURES = (
    "eviction-s",
    "downtime-ms",
    "stop-resume-ms",
    "hb-1s",
    "hb-5s",
    "work-1s",
    "silence-ms",
    "resident-s",
    "resident-mib-s",
    "storage-mib",
    "stopped-ms",
)
BEFORE_S = 2.0
AFTER_S = 5.0


@dataclass
class Move:
    """What a method says about the move that it made; moments are time.monotonic()."""

    started: float
    evicted: float  # the source may be powered off
    resident: float  # all memory is at the destination


class SpaceSampler:
    """The most space that a directory took while the sampler ran."""

    def __init__(self, directory):
        self._directory = directory
        self._stop = threading.Event()
        self.largest = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        while not self._stop.wait(0.1):
            try:
                self.largest = max(self.largest, leftovers.stored_bytes(self._directory))
            except FileNotFoundError:
                pass  # a file went away between listing and stat


def figures(guest, move, recorder, space_bytes):
    """The figures of a move that ended at least AFTER_S ago."""
    beats = guest.follower.snapshot()
    stops = recorder.times("STOP", move.started)
    resumes = recorder.times("RESUME", move.started)
    if not stops or not resumes:
        raise RuntimeError(f"STOP {stops} and RESUME {resumes}: both events are needed")
    stop, resume = stops[0][0], resumes[-1][0]
    if move.evicted < stop:
        raise RuntimeError("the source was said to be free before its guest was stopped")
    before = heartbeats.work(beats, move.started - BEFORE_S, BEFORE_S) / BEFORE_S
    resident_s = move.resident - resume
    result = {
        "eviction-s": move.evicted - move.started,
        "downtime-ms": 1000 * heartbeats.silence_around_s(beats, stop, resume),
        "stop-resume-ms": 1000 * (resume - stop),
        "hb-1s": heartbeats.percentage(beats, resume, 1.0),
        "hb-5s": heartbeats.percentage(beats, resume, AFTER_S),
        "silence-ms": 1000
        * heartbeats.longest_silence_s(beats, resume, max(resume + AFTER_S, move.resident)),
        "resident-s": max(0.0, resident_s),
        "storage-mib": space_bytes / 2**20,
    }
    if before > 0:
        result["work-1s"] = 100 * heartbeats.work(beats, resume, 1.0) / before
    if resident_s > 0.05:
        result["resident-mib-s"] = guest.config.fill_mib / resident_s
    return result


def settle(guest):
    """Lets the guest run undisturbed for as long as its work before the move is measured."""
    time.sleep(BEFORE_S + 0.5)
