"""Memory that is really there, for a guest that is about to arrive.

On a virtual machine the host may take back what the kernel reports as free (free page reporting),
two seconds or so after it was freed; who touches it again waits for the host: 400 to 1,000 MiB/s
instead of 2,700, and the host may count that time against the machine's share of the CPU and stop all of
it for tens of milliseconds (machine_stops.py sees it). A destination QEMU's memory is all fresh: whatever
moves the guest, what is then measured is the host. So memory is touched and held while the guest
boots, and given back while it moves, a little ahead of what is taken, so that none of it is free for
long. On a machine of one's own it makes no difference.

Small pages, because huge ones are taken back at once.
"""

import mmap
import re
import threading
from pathlib import Path

_PIECE_MIB = 32
# Given back beyond what was taken so far.
_AHEAD_MIB = 512
_LOOK_EVERY_S = 0.01


def _free_mib():
    return int(re.search(r"MemFree: *(\d+)", Path("/proc/meminfo").read_text())[1]) >> 10


class BackedMemory:
    """Holds `mib` of touched memory; gives it back as it is wanted from release_as_taken() on, and what is left when the block
    ends."""

    def __init__(self, mib):
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        pieces = -(-mib // _PIECE_MIB)
        self._pieces = [mmap.mmap(-1, _PIECE_MIB << 20, flags=flags) for _ in range(pieces)]
        self._end = threading.Event()
        self._thread = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end.set()
        if self._thread:
            self._thread.join()
        while self._pieces:
            self._pieces.pop().close()

    def release_as_taken(self):
        wanted = _free_mib() + _AHEAD_MIB
        self._give_back_until(wanted)
        self._thread = threading.Thread(target=self._follow, args=(wanted,), daemon=True)
        self._thread.start()

    def _follow(self, wanted_mib):
        while self._pieces and not self._end.wait(_LOOK_EVERY_S):
            self._give_back_until(wanted_mib)

    def _give_back_until(self, wanted_mib):
        for _ in range((wanted_mib - _free_mib()) // _PIECE_MIB):
            if self._pieces:
                self._pieces.pop().close()
