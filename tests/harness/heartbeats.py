"""What the guest's heartbeat lines say: parsing, and the figures derived from them. No processes,
no I/O.

A heartbeat line is `H <counter> <guest clock us> <pages dirtied> <pages checked> <bad pages>`;
tests/guest/guest_init.c says how the guest makes them. Times are the host's monotonic clock when
the line was read (at most about 1 ms late).

Definitions, used by all tests and benchmarks:

  silence      the longest time between two successive heartbeats in a span of time
  percentage   heartbeats that arrived in a span / heartbeats due in it (span / period); the guest
               never makes up for a missed beat, so 100 is the most there can be, except for
               rounding at the ends
  work         pages dirtied in a span, by the counters in the beats at its ends
"""

import bisect
import re
from dataclasses import dataclass

_BEAT = re.compile(rb"^H (\d+) (\d+) (\d+) (\d+) (\d+)$")


@dataclass(frozen=True)
class Beat:
    at: float  # host, time.monotonic() seconds
    counter: int
    guest_us: int
    dirtied: int  # pages, since boot
    checked: int  # pages, since boot
    bad: int  # pages, since boot
    stream: str  # which QEMU's serial line


def parse_beat(line, at, stream):
    """A Beat, or None if the line is something else."""
    match = _BEAT.match(line)
    if not match:
        return None
    counter, guest_us, dirtied, checked, bad = (int(group) for group in match.groups())
    return Beat(at, counter, guest_us, dirtied, checked, bad, stream)


def lost_counters(beats):
    """Heartbeats that never arrived, one line of text for each gap."""
    return [
        f"{after.counter - before.counter - 1} heartbeats lost after {before.counter}"
        f" ({before.stream} -> {after.stream})"
        for before, after in zip(beats, beats[1:])
        if after.counter - before.counter > 1
    ]


def repeated_counters(beats):
    """Counters or guest clocks that did not go forward: the guest ran twice, or an old state ran."""
    return [
        f"heartbeat {after.counter} at guest clock {after.guest_us}"
        f" after {before.counter} at {before.guest_us} ({before.stream} -> {after.stream})"
        for before, after in zip(beats, beats[1:])
        if after.counter <= before.counter or after.guest_us <= before.guest_us
    ]


def counter_faults(beats):
    """What is wrong with the counters, one line of text each."""
    return lost_counters(beats) + repeated_counters(beats)


def interleaved_streams(beats):
    """Streams that went on after a later stream had begun: the guest ran twice. One line of text
    each."""
    faults = []
    last_new = {}
    order = []
    for beat in beats:
        if beat.stream not in last_new:
            order.append(beat.stream)
        elif beat.stream != order[-1]:
            faults.append(
                f"heartbeat {beat.counter} from {beat.stream} after {order[-1]} had begun"
            )
        last_new[beat.stream] = beat.at
    return faults


def between(beats, start, end):
    times = [beat.at for beat in beats]
    return beats[bisect.bisect_left(times, start) : bisect.bisect_right(times, end)]


def longest_silence_s(beats, start, end):
    """Longest gap that begins in or reaches into [start, end], the part before `start` counted only
    from `start` on."""
    times = [start] + [beat.at for beat in between(beats, start, end)]
    later = [beat.at for beat in beats if beat.at > end]
    times.append(later[0] if later else end)
    return max(after - before for before, after in zip(times, times[1:]))


def longest_gap_around(beats, start, end):
    """The longest gap between two real heartbeats that touches [start, end]: (seconds, when it began)."""
    gaps = [
        (after.at - before.at, before.at)
        for before, after in zip(beats, beats[1:])
        if after.at >= start and before.at <= end
    ]
    return max(gaps, default=(0.0, start))


def silence_around_s(beats, start, end):
    """Its length: the guest's downtime as it shows it."""
    return longest_gap_around(beats, start, end)[0]


def percentage(beats, start, span_s, period_s=0.01):
    return 100.0 * len(between(beats, start, start + span_s)) / (span_s / period_s)


def dirtied_at(beats, moment):
    """Pages dirtied until `moment`: from the last beat at or before it, straight line to the next
    within the same stall-free gap."""
    times = [beat.at for beat in beats]
    after = bisect.bisect_right(times, moment)
    if after == 0:
        return float(beats[0].dirtied)
    left = beats[after - 1]
    if after == len(beats):
        return float(left.dirtied)
    right = beats[after]
    share = (moment - left.at) / (right.at - left.at) if right.at > left.at else 0.0
    return left.dirtied + share * (right.dirtied - left.dirtied)


def work(beats, start, span_s):
    """Pages dirtied in [start, start + span_s]. The first beat after a silence reports work done
    since the guest ran again."""
    return dirtied_at(beats, start + span_s) - dirtied_at(beats, start)
