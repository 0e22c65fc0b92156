"""2 MiB pages reserved for one test and given back after it. Root can reserve them; whoever cannot uses those that the machine
has to spare.

Their number is one for the machine, so tests take turns: whoever needs some holds a lock (flock) on the kernel's file of that number
for as long as it uses them. tests/fakes/huge_pages.h does the same; no other test writes the number.
"""

import contextlib
import fcntl
from pathlib import Path

from statements import expect

BYTES = 2 << 20
_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
_NUMBER = _POOL / "nr_hugepages"


def _free():
    return int((_POOL / "free_hugepages").read_text()) - int((_POOL / "resv_hugepages").read_text())


@contextlib.contextmanager
def reserved(pages):
    """Waits until no other test has any. Whoever maps them must have ended before the block does."""
    with _NUMBER.open() as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        before = _NUMBER.read_text()
        changes = _free() < pages
        try:
            if changes:
                with contextlib.suppress(PermissionError):
                    _NUMBER.write_text(str(int(before) + pages))
            expect(_free() >= pages, f"{pages} huge pages are there; root can reserve them")
            yield
        finally:
            if changes:
                with contextlib.suppress(PermissionError):
                    _NUMBER.write_text(before)
