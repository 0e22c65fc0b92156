"""Where things are on this machine: the cache, the QEMUs, the program, and which accelerator really
works.

Nothing here is remembered between runs except the answer of the KVM probe, in the cache and for one
boot of the machine.
"""

import json
import os
import select
import subprocess
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
KERNEL_PARAMETERS = (
    "console=ttyS0 quiet loglevel=4 nokaslr mitigations=off no_timer_check tsc=reliable "
    "random.trust_cpu=on audit=0 selinux=0 apparmor=0 panic=2"
)


def cache():
    return Path(os.environ.get("PAGEFERRY_CACHE") or Path.home() / ".cache" / "pageferry")


def store_parent():
    """Where the stores of tests are made: $PAGEFERRY_TEST_STORES, an NFS mount for example. Not in
    memory: O_DIRECT is part of what is tested."""
    return os.environ.get("PAGEFERRY_TEST_STORES", "/var/tmp")


def prepare():
    """Fills the cache; a few milliseconds when it is full."""
    subprocess.run([REPOSITORY / "tests" / "guest" / "prepare"], check=True)


def qemu(version):
    """The executable of stock QEMU ("7.2") or of the one from backports ("10")."""
    if version == "10":
        return str(cache() / "qemu10" / "qemu-system-x86_64")
    if version == "7.2":
        return "/usr/bin/qemu-system-x86_64"
    raise ValueError(f"QEMU version {version}: 7.2 or 10")


def pageferry():
    """The program under test: $PAGEFERRY, or the newest one under build/."""
    named = os.environ.get("PAGEFERRY")
    if named:
        return named
    found = [
        path
        for path in REPOSITORY.glob("build/*/tools/pageferry/pageferry")
        if os.access(path, os.X_OK)
    ]
    if not found:
        raise FileNotFoundError("no pageferry under build/: build it, or name it in $PAGEFERRY")
    return str(max(found, key=lambda path: path.stat().st_mtime))


def boot_guest_arguments(parameters):
    directory = cache() / "guest"
    settings = " ".join(f"pf.{name}={value}" for name, value in parameters.items())
    return [
        "-kernel",
        str(directory / "vmlinuz"),
        "-initrd",
        str(directory / "initramfs.cpio.gz"),
        "-append",
        f"{KERNEL_PARAMETERS} {settings}",
    ]


def accelerator(version="7.2"):
    """`kvm` where a guest was seen to boot on it, else `tcg`. /dev/kvm alone proves nothing."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    answers = cache() / "accelerator.json"
    try:
        known = json.loads(answers.read_text())
        if known.get("boot") == boot_id and version in known:
            return known[version]
    except (OSError, ValueError):
        known = {}
    if known.get("boot") != boot_id:
        known = {"boot": boot_id}
    known[version] = (
        "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) and _boots_on_kvm(version) else "tcg"
    )
    draft = answers.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(known))
    draft.rename(answers)
    return known[version]


def _boots_on_kvm(version, bound_s=8.0):
    command = [
        qemu(version),
        "-machine",
        "pc",
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-m",
        "256",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-no-reboot",
        *boot_guest_arguments({"fill_mib": 1}),
    ]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + bound_s
    seen = b""
    try:
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([process.stdout], [], [], left)[0]:
                break
            data = os.read(process.stdout.fileno(), 4096)
            if not data:
                break
            seen += data
            if b"\nH 5 " in seen:
                return True
        return False
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
