"""What a migration left behind: processes, sockets, files. Compared with what is allowed to be
there."""

import os
from pathlib import Path

import processes


def stray_qemus(uuid, allowed_pid):
    return [
        f"QEMU {process.pid} of the guest is still there"
        for process in processes.qemus_of(uuid)
        if process.pid != allowed_pid
    ]


def stray_tools(*needles):
    """Processes of the program whose command line mentions one of these paths."""
    found = []
    for pid in processes.all_pids():
        words = processes.command_line(pid)
        if words and os.path.basename(words[0]) == "pageferry" and pid != os.getpid():
            if any(str(needle) in word for needle in needles for word in words):
                if processes.state(pid) not in (None, "Z", "X"):
                    found.append(f"pageferry {pid} is still there: {' '.join(words)}")
    return found


def dead_sockets(directory):
    """Socket files under `directory` that no process listens on any more."""
    bound = {
        line.split()[7]
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]
        if len(line.split()) > 7
    }
    return [
        f"dead socket {path}"
        for path in Path(directory).rglob("*")
        if path.is_socket() and str(path) not in bound
    ]


# The order of first touches, in a VM's directory: stays from one move to the next. Its limit is
# that of docs/touch-record-format.md.
TOUCHES = "touches"
TOUCHES_BYTES_MAX = 52 + 12 * 262_144


def large_files(directory, limit_bytes=1 << 20):
    """Files that hold more than records do: a page file or device state that nobody needs any
    more."""
    return [
        f"{path} ({path.stat().st_size} bytes)"
        for path in Path(directory).rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and path.stat().st_size > (TOUCHES_BYTES_MAX if path.name == TOUCHES else limit_bytes)
    ]


def attempts(store):
    """Sub-directories of the VM directories on the store: one for each attempt whose files are
    still there."""
    return [
        path
        for vm in Path(store).iterdir()
        if vm.is_dir()
        for path in vm.iterdir()
        if path.is_dir()
    ]


def stored_bytes(directory):
    """Space really taken under `directory`."""
    return sum(path.stat().st_blocks * 512 for path in Path(directory).rglob("*") if path.is_file())


def temporary_files(directory):
    return [
        f"temporary file {path}"
        for path in Path(directory).rglob("*")
        if path.name.endswith((".tmp", "~"))
    ]
