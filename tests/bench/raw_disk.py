"""Raw sequential O_DIRECT speed of the storage: the floor that no method through storage can be
under.

1 MiB requests, queue depths 1 and 4 (threads); the better one counts, which is the harder
yardstick. Writes go to a preallocated file and end with fdatasync.
"""

import mmap
import os
import threading
import time
from pathlib import Path

_BLOCK = 1 << 20


def _workers(depth, total_blocks, step):
    """Runs step(buffer, block number) for every block in `depth` threads; returns the seconds it
    took."""
    failures = []

    def run(worker):
        buffer = mmap.mmap(-1, _BLOCK)
        buffer.write(os.urandom(_BLOCK))
        try:
            for block in range(worker, total_blocks, depth):
                step(buffer, block)
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(worker,)) for worker in range(depth)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return time.monotonic() - start


def speeds(directory, mib=512):
    """(write, read) in MiB/s, the better of queue depth 1 and 4."""
    path = Path(directory) / "raw-disk-speed"
    write, read = 0.0, 0.0
    for depth in (1, 4):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o600)
        try:
            os.posix_fallocate(fd, 0, mib * _BLOCK)
            os.fsync(fd)
            start = time.monotonic()
            _workers(depth, mib, lambda buffer, block: os.pwritev(fd, [buffer], block * _BLOCK))
            os.fdatasync(fd)
            write = max(write, mib / (time.monotonic() - start))
            read = max(
                read,
                mib
                / _workers(
                    depth, mib, lambda buffer, block: os.preadv(fd, [buffer], block * _BLOCK)
                ),
            )
        finally:
            os.close(fd)
            path.unlink()
    return write, read
