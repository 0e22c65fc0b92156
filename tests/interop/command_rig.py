"""What the cases of command_interop_test.py share: a small guest, a store of its own, places where
the tool waits for the test, and the statements that are made again and again."""

import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import ferry
import leftovers
import machine
from pf_guest import Config, Guest
from statements import expect

# Boots in about three seconds without KVM.
SMALL = {"memory_mib": 192, "fill_mib": 64, "dirty_mib_s": 5, "dirty_ws_mib": 16}
# Options of a migration whose first pass lasts long enough for a progress report.
LONG_FIRST_PASS = ("--bandwidth", "200")


def poll(condition, what, timeout_s=20):
    """The first true value of condition()."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise SystemExit(f"FAIL not within {timeout_s} s: {what}")
        time.sleep(0.01)


class Point:
    """A place of the hand-off (docs/fault-injection.md) at which the tool waits for let_go()."""

    def __init__(self, rig, name):
        self.name = name
        self._path = Path(tempfile.mkdtemp(dir=rig.directory)) / "go"

    @property
    def options(self):
        return ["--fail-at", f"{self.name}=wait:{self._path}"]

    def wait_reached(self):
        reached = self._path.with_name("go.reached")
        poll(reached.exists, f"the tool is at {self.name}")

    def let_go(self):
        self._path.touch()


class Rig:
    def __init__(self, version):
        self.version = version
        self._stack = ExitStack()
        self._tools = []
        self.directory = Path(tempfile.mkdtemp(prefix="pf-"))
        self.store = Path(tempfile.mkdtemp(prefix="pf-store-", dir=machine.store_parent()))

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        for tool in self._tools:
            if tool.process.poll() is None:
                tool.process.kill()
        try:
            self._stack.close()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
            shutil.rmtree(self.store, ignore_errors=True)

    def guest(self, **settings):
        """A running guest in a directory of its own; ended with the rig."""
        config = Config(version=self.version, **{**SMALL, **settings})
        directory = Path(tempfile.mkdtemp(prefix="g-", dir=self.directory))
        directory.chmod(0o711)  # for a QEMU of another user
        guest = self._stack.enter_context(Guest(config, directory))
        guest.wait_ready()
        return guest

    def migrate(self, guest, *options, timeout_s=60):
        return ferry.migrate(guest, self.store, *options, timeout_s=timeout_s)

    def start(self, guest, *options, environment=None):
        running = ferry.start_migration(guest, self.store, *options, environment=environment)
        self._tools.append(running)
        return running

    def start_to(self, point_name, guest, *options):
        """(migration, Point): it has come to that point and waits there."""
        point = Point(self, point_name)
        running = self.start(guest, *point.options, *options)
        point.wait_reached()
        return running, point

    def tool(self, guest, command, *options, pass_json=True):
        """A command that is over soon."""
        arguments = [command, *options, "--run-dir", ferry.run_directory(guest)]
        return ferry.Running(*arguments, pass_json=pass_json).wait(30)

    def named(self, guest):
        return ["--store", self.store, "--name", guest.uuid]


def expect_beats(guest):
    beat = guest.follower.snapshot()[-1]
    guest.follower.wait_beat(lambda later: later.counter > beat.counter + 30, 30)


def expect_code(outcome, code, text=""):
    said = outcome.explain() + str([o for _, o in outcome.objects if o["event"] == "error"])
    expect(outcome.code == code and text in said, f"exit code {code}, says {text!r}: {said}")


def expect_nothing_left(rig, guest):
    """Of a migration that did not come about: no process, no socket, no image."""
    wrong = (
        leftovers.stray_qemus(guest.uuid, guest.pid)
        + leftovers.stray_tools(rig.store, guest.directory)
        + leftovers.dead_sockets(guest.directory / "pf")
        + leftovers.attempts(rig.store)
    )
    expect(not wrong, f"nothing is left over {wrong}")


def expect_stayed(rig, guest, pid):
    """The guest runs in its old QEMU as if nothing had been."""
    expect(guest.pid == pid, "the guest is where it was")
    with guest.watch() as monitor:
        state = poll(lambda: monitor.status() == "running", "the guest runs")
        on = [
            capability["capability"]
            for capability in monitor.command("query-migrate-capabilities")
            if capability["state"]
            and capability["capability"] in ("postcopy-ram", "pause-before-switchover")
        ]
    expect(state and not on, f"it runs, QEMU's settings are as before {on}")
    expect_beats(guest)
    expect(not guest.verdict(), f"no heartbeat is lost, no page is bad {guest.verdict()}")
    expect_nothing_left(rig, guest)


def expect_moved(rig, guest, pid):
    """The guest runs in another QEMU, whole."""
    expect(guest.pid != pid, "the guest runs in another QEMU")
    expect_beats(guest)
    expect(guest.full_check() == 0, "the guest finds no bad page in its memory")
    expect(not guest.verdict(), f"no heartbeat is lost or repeated {guest.verdict()}")
    wrong = leftovers.stray_qemus(guest.uuid, guest.pid) + leftovers.stray_tools(
        rig.store, guest.directory
    )
    expect(not wrong, f"nothing is left over {wrong}")
