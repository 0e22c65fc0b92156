"""The rows of the matrix: who is hit, how, where, and where the guest must be afterwards."""

import signal
from dataclasses import dataclass

BEFORE_SHUT = (
    "source.setup",
    "source.pass1",
    "source.later-pass",
    "source.blackout",
    "source.before-commit",
    "source.before-shut",
)
AFTER_SHUT = ("source.after-shut", "source.after-release")
KILLED_BY_RECOVER = (-signal.SIGKILL,)
ANYWHERE = frozenset(("source", "destination", "lost"))


@dataclass(frozen=True)
class Case:
    victim: str  # source-tool, destination-tool, source-qemu, destination-qemu, store
    fault: str  # a key of injections.FAULTS
    point: str  # of --fail-at; `start` is before the tool is started
    owner: object  # where the guest must be: source, destination, lost; or a set of them
    code: tuple  # accepted exit codes of migrate; () when it was killed itself
    meanwhile: str = ""  # store/hang, store/full: what the guest does while it lasts

    @property
    def name(self):
        return f"{self.victim}/{self.fault}/{self.point}"

    @property
    def owners(self):
        return {self.owner} if isinstance(self.owner, str) else set(self.owner)


def all_cases():
    return [*tool_cases(), *meeting_cases(), *qemu_cases(), *full_cases(), *hang_cases()]


def tool_cases():
    """Either tool is killed, or stopped and continued."""
    for point in BEFORE_SHUT:
        yield Case("source-tool", "kill", point, "source", ())
    yield Case("source-tool", "kill", "source.after-shut", "source", ())
    yield Case("source-tool", "kill", "source.after-release", "destination", ())
    yield Case("destination-tool", "kill", "destination.prepared", "source", (1,))
    yield Case("destination-tool", "kill", "destination.loaded", "source", (1,))
    for point in ("after-owner", "after-running", "restoring"):
        yield Case("destination-tool", "kill", f"destination.{point}", "destination", (0,))
    for point in BEFORE_SHUT + AFTER_SHUT:
        yield Case("source-tool", "stop", point, "destination", (0,))
    for point in ("prepared", "loaded", "after-owner", "after-running", "restoring"):
        yield Case("destination-tool", "stop", f"destination.{point}", "destination", (0,))
    # The limit has passed when it is continued: its guard and its hand-off race for SHUT(0).
    for point in ("source.blackout", "source.before-commit", "source.before-shut"):
        owners = frozenset(("source", "destination"))
        yield Case("source-tool", "stop-past-limit", point, owners, (0, 6))


def meeting_cases():
    """A tool is stopped, `recover` works on the same VM, then the tool is continued.

    recover-stopped: as an operator does it; the lock makes recover end the other first.
    recover-apart: with another --run-dir and over another monitor, so that neither lock nor QMP
    keeps them apart, as on two hosts: only the records do.
    """
    either = frozenset(("source", "destination"))
    for fault, codes in (("recover-stopped", KILLED_BY_RECOVER), ("recover-apart", (0, 1, 5, 7))):
        yield Case("source-tool", fault, "source.after-shut", "source", codes)
        yield Case("source-tool", fault, "source.after-release", either, codes)
        yield Case("destination-tool", fault, "destination.loaded", either, codes)
        for point in ("destination.after-owner", "destination.after-running"):
            yield Case("destination-tool", fault, point, "destination", codes)


def qemu_cases():
    """Either QEMU is killed."""
    for point in BEFORE_SHUT:
        yield Case("source-qemu", "kill", point, "lost", (8,))
    for point in AFTER_SHUT:
        yield Case("source-qemu", "kill", point, "destination", (0,))
    for point in ("destination.prepared", "destination.loaded", "destination.after-owner"):
        yield Case("destination-qemu", "kill", point, "source", (1,))
    yield Case("destination-qemu", "kill", "destination.after-running", ANYWHERE, (0, 1, 7, 8))
    yield Case("destination-qemu", "kill", "destination.restoring", "lost", (7, 8))


def full_cases():
    """The store has no room left from that point on. `waits`: nobody runs the guest until there is
    room again, which is then made; `runs`: it runs, and room is made later all the same."""
    yield Case("store", "full", "start", "source", (3,))
    yield Case("store", "nearly-full", "start", "source", (1,))
    for point in ("source.pass1", "source.later-pass", "source.blackout"):
        yield Case("store", "full", point, "source", (1,))
    for point in ("source.before-shut", "source.after-shut"):
        yield Case("store", "full", point, "destination", (0,), "waits")
    yield Case("store", "full", "source.after-release", "source", (1,), "waits")
    yield Case("store", "full", "destination.after-owner", "destination", (0,), "waits")
    yield Case("store", "full", "destination.restoring", "destination", (0,), "runs")


def hang_cases():
    """Every write to the store hangs from that point on, until it is thawed. `runs`: the guest runs
    all the while; `resumes`: it runs again within --blackout-limit, the store still hanging;
    `waits`: nobody runs it."""
    for point in ("source.pass1", "source.later-pass", "destination.prepared"):
        yield Case("store", "hang", point, "destination", (0,), "runs")
    yield Case("store", "hang-abort", "source.pass1", "source", (4,), "runs")
    for point in ("source.blackout", "source.before-commit"):
        yield Case("store", "hang", point, "source", (6,), "resumes")
    for point in ("source.after-shut", "source.after-release", "destination.after-owner"):
        yield Case("store", "hang", point, "destination", (0,), "waits")
    for point in ("destination.after-running", "destination.restoring"):
        yield Case("store", "hang", point, "destination", (0,), "runs")
