"""Memory that is really there, for a guest that is about to arrive.

On a virtual machine the host may take back what the kernel reports as free (free page reporting),
two seconds or so after it was freed; who touches it again waits for the host: 400 to 1,000 MiB/s
instead of 2,700, and the host may count that time against the machine's share of the CPU and stop all of
it for tens of milliseconds (seen as stolen time). A destination QEMU's memory is all fresh: whatever
moves the guest, what is then measured is the host. So memory is touched and held while the guest
boots, and given back just before it moves. On a machine of one's own it makes no difference.

Small pages, because huge ones are taken back at once.
"""

import mmap
import threading
import time

_PIECE_MIB = 64
# For what the tools themselves take.
_PIECES_AT_ONCE = 8
# 1.6 GiB/s, about as fast as a guest is evicted: what its destination takes has not been free for long.
_PIECE_EVERY_S = 0.04


class BackedMemory:
    """Holds `mib` of touched memory until release(), or until the block ends."""

    def __init__(self, mib):
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        pieces = -(-mib // _PIECE_MIB)
        self._pieces = [mmap.mmap(-1, _PIECE_MIB << 20, flags=flags) for _ in range(pieces)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()

    def release(self):
        """Gives all of it back; takes 60 ms for each GiB."""
        while self._pieces:
            self._pieces.pop().close()

    def release_slowly(self):
        """Gives some of it back now and the rest beside what follows, at the pace of a move: the destination takes
        its memory when the eviction is over, and that may be longer than the host waits."""
        for _ in range(min(_PIECES_AT_ONCE, len(self._pieces))):
            self._pieces.pop().close()
        threading.Thread(target=self._release_paced, daemon=True).start()

    def _release_paced(self):
        while self._pieces:
            self._pieces.pop().close()
            time.sleep(_PIECE_EVERY_S)
