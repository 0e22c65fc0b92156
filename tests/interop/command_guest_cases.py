"""Cases about the guest: what it does meanwhile, and what its QEMU has."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import huge_pages
import machine
import processes
from command_rig import (
    LONG_FIRST_PASS, SMALL, expect_code, expect_moved, expect_nothing_left, poll,
)
from qmp import QmpError
from statements import expect

UNPRIVILEGED_FAULTS = Path("/proc/sys/vm/unprivileged_userfaultfd")
NOBODY = 65534


def paused(rig):
    """A guest that was paused before is paused after, wherever it is."""
    guest = rig.guest()
    pid = guest.pid
    with guest.watch() as monitor:
        monitor.command("stop")
    running, point = rig.start_to("source.before-commit", guest)
    expect_code(rig.tool(guest, "abort", "--name", guest.uuid), 0)
    point.let_go()
    expect_code(running.wait(30), 4)
    # QEMU 7.2 calls a stopped guest so after any migration that failed, and wants it continued once before the next.
    again = "postmigrate" if rig.version == "7.2" else "paused"
    with guest.watch() as monitor:
        expect(monitor.status() == again, f"it is stopped as before: {monitor.status()}")
        if again == "postmigrate":
            expect_code(rig.migrate(guest), 3, "continue it once")
            monitor.command("cont")
            monitor.command("stop")
    expect_nothing_left(rig, guest)
    expect_code(rig.migrate(guest), 0)
    expect(guest.pid != pid, "it is in another QEMU")
    with guest.watch() as monitor:
        expect(monitor.status() == "paused", f"and paused there: {monitor.status()}")
        monitor.command("cont")
    expect_moved(rig, guest, pid)


def _end_guest_in_pass1(rig, guest):
    """The guest shuts down while its pages go out; how the migration ended."""
    running, point = rig.start_to("source.pass1", guest, *LONG_FIRST_PASS)
    with guest.watch() as monitor:
        try:
            monitor.command("system_reset")  # with -no-reboot a reset is a shutdown
        except QmpError:
            pass  # it may end before it answers
    point.let_go()
    return running.wait(30)


def guest_ends(rig):
    """A guest that shuts down during the move ends it: with its QEMU gone the state is lost."""
    guest = rig.guest()
    expect_code(_end_guest_in_pass1(rig, guest), 8, "shut down")
    expect(not processes.qemus_of(guest.uuid), "no QEMU is left")
    expect_nothing_left(rig, guest)


def guest_ends_qemu_stays(rig):
    """With -no-shutdown the QEMU stays, and the guest with it, as it is."""
    guest = rig.guest(extra=["-no-shutdown"])
    expect_code(_end_guest_in_pass1(rig, guest), 1, "shut down")
    with guest.watch() as monitor:
        expect(monitor.status() == "shutdown", "the guest is shut down, not continued")
    expect_nothing_left(rig, guest)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _forwards(guest):
    with guest.watch() as monitor:
        return monitor.command("human-monitor-command", command_line="info usernet")


def forwards(rig):
    """Host forwards are put back at the destination once the source has ended."""
    port = _free_port()
    guest = rig.guest(extra=[
        "-netdev", f"user,id=n0,hostfwd=tcp:127.0.0.1:{port}-:22",
        "-device", "e1000,netdev=n0,romfile="])
    for _ in range(2):
        pid = guest.pid
        expect(f" {port} " in _forwards(guest), f"port {port} is forwarded")
        expect_code(rig.migrate(guest), 0)
        poll(lambda: f" {port} " in _forwards(guest), f"port {port} is forwarded again")
        with socket.create_connection(("127.0.0.1", port), 5):
            expect(True, "and answers")
        expect_moved(rig, guest, pid)


def _move_twice(rig, guest):
    for _ in range(2):
        pid = guest.pid
        expect_code(rig.migrate(guest), 0)
        expect_moved(rig, guest, pid)


def memfd(rig):
    """Memory in a memfd."""
    _move_twice(rig, rig.guest(backend="memfd"))


def memory_file(rig):
    """Memory in a file that is mapped shared: each QEMU has its own, none is left. Not on a file
    system on which faults cannot be caught."""
    directory = Path(tempfile.mkdtemp(prefix="pf-", dir="/dev/shm"))
    try:
        guest = rig.guest(backend=f"file:{directory}")
        _move_twice(rig, guest)
        files = sorted(path.name for path in directory.iterdir())
        expect(files == ["run1"], f"only the user's own file is there: {files}")
        guest.close()
    finally:
        shutil.rmtree(directory)
    (rig.store / "memory").mkdir()
    guest = rig.guest(backend=f"file:{rig.store}/memory")
    expect_code(rig.migrate(guest), 3, "neither tmpfs nor hugetlbfs")


def numa(rig):
    """Two NUMA nodes with a memory back end each. Of sizes that are no multiples of 256 KiB: with
    others QEMU under TCG loses pages of all blocks but the first (docs/testing.md)."""
    half_kib = SMALL["memory_mib"] * 1024 // 2
    extra = []
    for node, kib in enumerate((half_kib - 128, half_kib + 128)):
        extra += ["-object", f"memory-backend-ram,id=m{node},size={kib}K",
                  "-numa", f"node,nodeid={node},memdev=m{node}"]
    _move_twice(rig, rig.guest(extra=extra))


def hugetlb(rig):
    """Memory in huge pages; as root only, who can reserve them."""
    if os.geteuid() != 0:
        print("     not root: nothing to see")
        return
    size = SMALL["memory_mib"]
    with huge_pages.reserved(2 * (size << 20) // huge_pages.BYTES):  # for source and destination
        guest = rig.guest(machine="pc-i440fx-10.0,memory-backend=huge", extra=[
            "-object", f"memory-backend-memfd,id=huge,size={size}M,hugetlb=on,hugetlbsize=2M"])
        _move_twice(rig, guest)
        guest.close()


def other_user(rig):
    """Root moves a guest whose QEMU runs as somebody else: the destination runs as that user."""
    if os.geteuid() != 0:
        print("     not root: nothing to see")
        return
    # Nobody can look into root's cache.
    cache = rig.directory / "cache"
    shutil.copytree(machine.cache() / "guest", cache / "guest")
    shutil.copy(machine.cache() / "accelerator.json", cache)
    rig.directory.chmod(0o711)
    before = UNPRIVILEGED_FAULTS.read_text()
    UNPRIVILEGED_FAULTS.write_text("1")
    os.environ["PAGEFERRY_CACHE"] = str(cache)
    try:
        guest = rig.guest(user=(NOBODY, NOBODY))
        _move_twice(rig, guest)
        status = Path(f"/proc/{guest.pid}/status").read_text()
        ids = [line.split()[1:] for line in status.splitlines() if line[:4] in ("Uid:", "Gid:")]
        expect(ids == 2 * [4 * [str(NOBODY)]], f"the destination's ids: {ids}")
        guest.close()
    finally:
        del os.environ["PAGEFERRY_CACHE"]
        UNPRIVILEGED_FAULTS.write_text(before)


def _disk(rig, kind):
    path = rig.disks / f"disk.{kind}"
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, "64M"], check=True)
    return path


def _io(guest, drive, command):
    """A read or write of QEMU itself: the guest of the tests has no disk driver."""
    log = Path(os.readlink(f"/proc/{guest.pid}/fd/1"))  # where qemu-io talks to
    before = len(log.read_text())
    with guest.watch() as monitor:
        said = monitor.command("human-monitor-command", command_line=f'qemu-io {drive} "{command}"')
    said += poll(lambda: log.read_text()[before:], f"{command} is done")
    expect("64 KiB" in said and "failed" not in said and "rror" not in said, f"{command}: {said!r}")


def _graph(guest):
    with guest.watch() as monitor:
        return [(entry["device"], entry["inserted"]["file"], entry["inserted"]["drv"], entry["inserted"]["ro"])
                for entry in monitor.command("query-block") if "inserted" in entry]


def disks(rig):
    """A qcow2 and a raw disk: the same block graph and the same bytes at both ends, never unlocked."""
    rig.disks = Path(tempfile.mkdtemp(prefix="disks-", dir=rig.store.parent))
    try:
        images = {kind: _disk(rig, kind) for kind in ("qcow2", "raw")}
        extra = []
        for kind, path in images.items():
            extra += ["-drive", f"file={path},format={kind},if=none,id=d-{kind},cache=none",
                      "-device", f"virtio-blk-pci,drive=d-{kind}"]
        guest = rig.guest(extra=extra)
        before = _graph(guest)
        expect(len(before) == 2, f"two disks: {before}")
        for turn in (1, 2):
            for kind in images:
                _io(guest, f"d-{kind}", f"write -P {turn} {64 * turn}k 64k")
            pid = guest.pid
            expect_code(rig.migrate(guest), 0)
            expect_moved(rig, guest, pid)
            expect(_graph(guest) == before, f"the same block graph: {_graph(guest)}")
            for kind, path in images.items():
                for old in range(1, turn + 1):
                    _io(guest, f"d-{kind}", f"read -P {old} {64 * old}k 64k")
                _io(guest, f"d-{kind}", f"write -P 9 {64 * (turn + 8)}k 64k")
                opened = subprocess.run(["qemu-io", "-f", kind, "-c", "quit", path], capture_output=True, text=True)
                expect("lock" in opened.stderr, f"{kind} is locked by the destination: {opened.stderr.strip()}")
        with guest.watch() as monitor:
            monitor.command("quit")
        poll(lambda: not processes.qemus_of(guest.uuid), "the last QEMU ends")
        for kind, path in images.items():
            subprocess.run(["qemu-io", "-f", kind, "-c", "read -P 9 640k 64k", path], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["qemu-img", "check", "-q", images["qcow2"]], check=True)
        expect(True, "both images are sound, with what the last QEMU wrote")
    finally:
        shutil.rmtree(rig.disks)


CASES = {
    "paused": paused,
    "guest-ends": guest_ends,
    "guest-ends-qemu-stays": guest_ends_qemu_stays,
    "forwards": forwards,
    "memfd": memfd,
    "memory-file": memory_file,
    "numa": numa,
    "hugetlb": hugetlb,
    "other-user": other_user,
    "disks": disks,
}
