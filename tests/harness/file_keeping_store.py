"""A store that keeps a file which is removed while a process of this host has it open, under another
name in the same directory, as an NFS client does with .nfs...: bindfs (FUSE), with .fuse_hidden...
Such a directory cannot be removed before the file is closed."""

import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

_UNMOUNT_S = 30


@contextmanager
def file_keeping_store(rig):
    """The rig's store lies behind such a mount until the end."""
    below = rig.store
    mount = Path(f"{below}-mount")
    mount.mkdir(mode=0o700)
    subprocess.run(["bindfs", below, mount], check=True, timeout=60)
    rig.store = mount
    try:
        yield
    finally:
        rig.store = below
        deadline = time.monotonic() + _UNMOUNT_S
        unmount = ["fusermount3", "-u", mount]
        while subprocess.run(unmount, stderr=subprocess.DEVNULL).returncode != 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{mount} is still in use after {_UNMOUNT_S} s")
            time.sleep(0.1)
        mount.rmdir()
