"""A store of its own that can be filled to the last block, and frozen: ext4 in a file, mounted over
a loop device. Needs root.

freeze() is fsfreeze: every write, link, unlink and fsync of something dirty blocks in the kernel
and cannot be ended, not even by SIGKILL; reads go on. That is what a hung server does to a writer.
"""

import errno
import os
import subprocess
import time
from pathlib import Path

_STEPS_BYTES = (64 << 20, 1 << 20, 64 << 10, 4 << 10)
_UNMOUNT_S = 30


class SmallStore:
    def __init__(self, directory, size_mib):
        self._image = Path(directory) / "store.img"
        self._mount = Path(directory) / "store"
        self.path = self._mount / "ferry"
        self._filler = self._mount / "filler"
        self._frozen = False
        self._size_bytes = size_mib << 20

    def __enter__(self):
        self._mount.mkdir()
        with open(self._image, "wb") as image:
            image.truncate(self._size_bytes)
        eager = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-J", "size=4", "-E", eager, self._image)
        _run("mount", "-o", "loop", self._image, self._mount)
        self.path.mkdir(mode=0o700)
        return self

    def __exit__(self, *_):
        self.thaw()
        deadline = time.monotonic() + _UNMOUNT_S
        while subprocess.run(["umount", self._mount], stderr=subprocess.DEVNULL).returncode != 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._mount} is still in use after {_UNMOUNT_S} s")
            time.sleep(0.1)
        self._image.unlink()
        self._mount.rmdir()

    def fill(self, leave_bytes=0):
        """Takes all space but so much."""
        free = os.statvfs(self._mount)
        wanted = free.f_bavail * free.f_frsize - leave_bytes
        taken = 0
        with open(self._filler, "wb") as filler:
            for step in _STEPS_BYTES:
                while leave_bytes == 0 or taken + step <= wanted:
                    try:
                        os.posix_fallocate(filler.fileno(), taken, step)
                    except OSError as error:
                        if error.errno != errno.ENOSPC:
                            raise
                        break
                    taken += step

    def make_room(self):
        self._filler.unlink(missing_ok=True)

    def freeze(self):
        _run("fsfreeze", "-f", self._mount)
        self._frozen = True

    def thaw(self):
        if self._frozen:
            _run("fsfreeze", "-u", self._mount)
            self._frozen = False


def _run(*command):
    subprocess.run([str(word) for word in command], check=True, timeout=60)
