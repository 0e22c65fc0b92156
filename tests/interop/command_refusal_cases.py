"""Cases in which nothing is to happen: pre-flight, and what is refused before anything is touched."""

import os
import shutil
import socket

import ferry
from command_rig import expect_code, expect_stayed
from damage import flip_bit, wipe
from qmp import Qmp
from statements import expect


def expect_empty(directory, what):
    found = [str(path) for path in directory.rglob("*")]
    expect(not found, f"{what} is empty {found}")


def check(rig):
    """check and migrate --dry-run say that a good VM can move, and touch nothing."""
    guest = rig.guest()
    vm = f"qemu:{guest.qmp_path}"
    text = rig.tool(guest, "check", vm, "--store", rig.store, pass_json=False)
    lines = [value["not-json"] for _, value in text.objects]
    expect(text.code == 0 and any(line.startswith("ok ") for line in lines), f"as text: {lines}")
    expect(not any(line.startswith("refused") for line in lines), "nothing is refused")
    as_json = rig.tool(guest, "check", vm, "--store", rig.store)
    subjects = {finding["subject"] for finding in as_json.final["findings"]}
    expect(as_json.code == 0 and {"store", "vm"} <= subjects, f"as JSON: {sorted(subjects)}")
    dry = rig.start(guest, "--dry-run").wait(30)
    expect_code(dry, 0)
    expect({finding["subject"] for finding in dry.final["findings"]} == subjects, "--dry-run agrees")
    expect_empty(rig.store, "the store")
    expect_stayed(rig, guest, guest.pid)
    missing = rig.tool(guest, "check", vm, "--store", rig.store / "none")
    expect_code(missing, 3)


def monitors(rig):
    """A monitor that is none, is dead, or is held by another client is named."""
    guest = rig.guest()
    dead = guest.directory / "dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    not_qmp = guest.process().command_socket()
    held = guest.qmp_path
    with Qmp(held):
        for path, text in (
            (guest.directory / "none.sock", "none.sock"),
            (dead, "dead.sock"),
            (guest.directory / "run1" / "serial.log", "serial.log"),
            (not_qmp, "no QMP monitor"),
            (held, "another client holds it"),
        ):
            refused = ferry.Running(
                "migrate", f"qemu:{path}", "--store", rig.store, "--to", "local",
                "--run-dir", ferry.run_directory(guest)).wait(30)
            expect_code(refused, 3, text)
    expect_empty(rig.store, "the store")
    expect_stayed(rig, guest, guest.pid)


def stores(rig):
    """A store that is missing, a symlink, no directory or not writable is refused."""
    guest = rig.guest()
    link = rig.directory / "link"
    link.symlink_to(rig.store)
    plain = rig.directory / "plain"
    plain.write_text("no directory")
    for store in (rig.directory / "none", link, plain, "/proc"):
        refused = ferry.start_migration(guest, store).wait(30)
        expect_code(refused, 3, str(store))
    expect_empty(rig.store, "what the symlink points to")
    expect(plain.read_text() == "no directory", "the file is untouched")
    expect_stayed(rig, guest, guest.pid)


def libvirt(rig):
    """A guest that libvirt manages is refused: its descriptors cannot be made again."""
    guest = rig.guest(extra=["-chardev", "null,id=charmonitor"])
    expect_code(rig.migrate(guest), 3, "managed by libvirt")
    expect_empty(rig.store, "the store")
    expect_stayed(rig, guest, guest.pid)


def inspect(rig):
    """--keep keeps the image, inspect proves it; copies that are not whole are refused in a line."""
    guest = rig.guest()
    pid = guest.pid
    outcome = rig.migrate(guest, "--keep")
    expect_code(outcome, 0)
    guest.full_check()
    expect(guest.pid != pid, "the guest runs in another QEMU")
    (image,) = rig.store.glob("*/attempt.*/pages")
    proved = rig.tool(guest, "inspect", image, "--verify")
    expect_code(proved, 0)
    verified, said = proved.final["verified"], proved.final
    expect(verified["bad-pages"] == 0 and verified["pages"] == said["stored-pages"] > 0,
           f"every stored page is proved: {verified}")
    expect(rig.tool(guest, "inspect", image).code == 0, "inspect without --verify")
    size = said["committed-bytes"]
    copy = rig.directory / "copy"
    for damage, code, text in (
        (lambda: os.truncate(copy, 4096), 1, "copy"),
        (lambda: os.truncate(copy, size // 2), 1, "copy"),
        (lambda: os.truncate(copy, 0), 1, "copy"),
        (lambda: flip_bit(copy, 100), 1, "copy"),
        (lambda: wipe(copy, 4096, 4096), 1, "not committed"),
        (lambda: flip_bit(copy, size - 2048), 8, "page"),
    ):
        shutil.copy(image, copy)
        damage()
        refused = rig.tool(guest, "inspect", copy, "--verify")
        expect_code(refused, code, text)
        errors = [value for _, value in refused.objects if value["event"] == "error"]
        expect(len(errors) == 1, "in one line")


CASES = {
    "check": check,
    "monitors": monitors,
    "stores": stores,
    "libvirt": libvirt,
    "inspect": inspect,
}
