"""The methods that are compared, each as a function (guest, store, recorder) -> Move. The guest runs in its
first QEMU and ends in another.

Same conditions for all: same guest, same downtime limit, no bandwidth limit, the destination's QEMU
started beforehand where the method allows for it (pageferry starts its own, and is measured with
it). The source's QEMU stays, with its memory, until the guest is closed: on another host it would
cost the destination nothing.
"""

import socket
import subprocess
import sys
import time
from pathlib import Path

import ferry
from measure import Move
from qmp import Qmp

MAX_DOWNTIME_MS = 300
_NO_LIMIT = 1 << 40
_MULTIFD_CHANNELS = 2
_TIMEOUT_S = 300

# Reads a stream and throws it away, as fast as a process can.
_SINK = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(1)
print("ready", flush=True)
peer, _ = listener.accept()
buffer = bytearray(1 << 20)
while peer.recv_into(buffer):
    pass
"""


def _capabilities(qmp, *names):
    qmp.raw(
        {
            "execute": "migrate-set-capabilities",
            "arguments": {
                "capabilities": [{"capability": name, "state": True} for name in ("events", *names)]
            },
        }
    )


def _limits(qmp, **more):
    qmp.command(
        "migrate-set-parameters", downtime_limit=MAX_DOWNTIME_MS, max_bandwidth=_NO_LIMIT, **more
    )


def _completed(qmp):
    event = qmp.wait_event(
        "MIGRATION", _TIMEOUT_S, lambda data: data["status"] in ("completed", "failed", "cancelled")
    )
    if event.data["status"] != "completed":
        raise RuntimeError(f"migration {event.data['status']}: {qmp.command('query-migrate')}")
    return event.at


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _live(guest, recorder, uri, capabilities=(), postcopy=False):
    """QEMU's own migration over a socket."""
    target_path = guest.start(incoming="defer")
    recorder.wait_for_monitors(2, 10)
    with Qmp(guest.qmp_path) as source, Qmp(target_path) as target:
        _capabilities(target, *capabilities)
        _capabilities(source, *capabilities)
        _limits(source, **({"max_postcopy_bandwidth": 0} if postcopy else {}))
        target.command("migrate-incoming", uri=uri)
        started = time.monotonic()
        source.command("migrate", uri=uri)
        if postcopy:
            source.wait_event("MIGRATION", 30, lambda data: data["status"] == "active")
            source.command("migrate-start-postcopy")
        ended = _completed(source)
    return Move(started, ended, ended)


def precopy_tcp(guest, store, recorder):
    return _live(guest, recorder, f"tcp:127.0.0.1:{_free_port()}")


def precopy_unix(guest, store, recorder):
    return _live(guest, recorder, f"unix:{guest.directory}/move.sock")


def postcopy_preempt(guest, store, recorder):
    return _live(
        guest,
        recorder,
        f"unix:{guest.directory}/move.sock",
        ("postcopy-ram", "postcopy-preempt"),
        postcopy=True,
    )


def mapped_ram(guest, store, recorder):
    """Live save into a mapped-ram file with multifd and direct-io, then load from it: QEMU's own
    way through storage."""
    path = Path(store) / "mapped-ram"
    target_path = guest.start(incoming="defer")
    channels = {"multifd_channels": _MULTIFD_CHANNELS, "direct_io": True}
    recorder.wait_for_monitors(2, 10)
    with Qmp(guest.qmp_path) as source, Qmp(target_path) as target:
        for qmp in (source, target):
            _capabilities(qmp, "mapped-ram", "multifd")
            _limits(qmp, **channels)
        started = time.monotonic()
        source.command("migrate", uri=f"file:{path}")
        evicted = _completed(source)
        target.command("migrate-incoming", timeout_s=_TIMEOUT_S, uri=f"file:{path}")
        resumed = target.wait_event("RESUME", _TIMEOUT_S).at
    return Move(started, evicted, resumed)


def thrown_away(guest, store, recorder):
    """Floor (a): the stream into a reader that throws it away. The guest then goes on at the
    source; only the eviction time counts."""
    path = f"{guest.directory}/sink.sock"
    sink = subprocess.Popen([sys.executable, "-c", _SINK, path], stdout=subprocess.PIPE, text=True)
    try:
        sink.stdout.readline()
        with Qmp(guest.qmp_path) as source:
            _capabilities(source)
            _limits(source)
            started = time.monotonic()
            source.command("migrate", uri=f"unix:{path}")
            ended = _completed(source)
            while source.status() != "postmigrate":  # QEMU announces `completed` a little early
                time.sleep(0.01)
            source.command("cont")
    finally:
        sink.kill()
        sink.wait()
        sink.stdout.close()
    return Move(started, ended, ended)


def pageferry(guest, store, recorder, *options):
    """The program. Its eviction-time is taken from its final report; resident is when it ends,
    which is when it says so."""
    limits = ("--max-downtime", MAX_DOWNTIME_MS)
    outcome = ferry.migrate(guest, store, "--keep-source", *limits, *options, timeout_s=_TIMEOUT_S)
    if outcome.code != 0:
        raise RuntimeError(outcome.explain())
    # The program counts from its own start, which is a moment after ours.
    at, first = outcome.objects[0]
    counted_from = at - first["elapsed-ms"] / 1000
    return Move(
        outcome.started, counted_from + outcome.final["eviction-time"] / 1000, outcome.ended
    )


# name: (QEMU version, function)
METHODS = {
    "precopy-tcp": ("10", precopy_tcp),
    "precopy-unix": ("10", precopy_unix),
    "postcopy-preempt": ("10", postcopy_preempt),
    "mapped-ram": ("10", mapped_ram),
    "thrown-away": ("10", thrown_away),
    "pageferry": ("10", pageferry),
    "precopy-unix-7.2": ("7.2", precopy_unix),
    "thrown-away-7.2": ("7.2", thrown_away),
    "pageferry-7.2": ("7.2", pageferry),
}
