"""How each fault of the matrix is done to a migration, and what is looked at while it lasts."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import ferry
import processes
from watcher import Watcher

HOLD_S = 2.0  # how long a fault lasts whose end does not depend on what is seen
LIMIT_S = 3  # --blackout-limit where it is to pass
RESUME_S = LIMIT_S + 7  # the guest runs again within this, on a loaded machine
BEATS = 50  # so many heartbeats say that the guest runs
BANDWIDTH_MIB_S = 80  # slow enough that every pass is seen


@dataclass
class Scene:
    """One migration of one guest on one store."""

    guest: object
    store: Path
    small_store: object  # SmallStore, or None
    directory: Path
    watcher: Watcher
    source_pid: int
    placement: str = "auto"
    operator: str = "nothing"

    @property
    def mark(self):
        return self.directory / "go-on"

    def start(self, case, action, *options):
        at = ("--fail-at", f"{case.point}={action}") if case.point != "start" else ()
        return ferry.start_migration(
            self.guest, self.store, "--bandwidth", BANDWIDTH_MIB_S,
            "--placement", self.placement, *at, *options
        )

    def start_and_reach(self, case, *options):
        """A migration that waits at the case's point until go_on()."""
        running = self.start(case, f"wait:{self.mark}", *options)
        wait_for(Path(f"{self.mark}.reached").exists, f"{case.point} reached", running)
        return running

    def go_on(self):
        self.mark.touch()

    def recover(self, *options, timeout_s=150):
        run_dir = ("--run-dir", ferry.run_directory(self.guest))
        words = ("--store", self.store, "--name", self.guest.uuid, *(options or run_dir))
        return ferry.Running("recover", *words).wait(timeout_s)


def wait_for(condition, what, running=None, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        if running and running.process.poll() is not None:
            raise TimeoutError(f"not seen: {what}; {running.wait().explain()}")
        time.sleep(0.02)
    raise TimeoutError(f"not seen within {timeout_s} s: {what}")


def tools_of(guest, word):
    """Pids of the program's processes with this sub-command that work on this guest."""
    directory = str(ferry.run_directory(guest))
    found = []
    for pid in processes.all_pids():
        words = processes.command_line(pid)
        if len(words) > 1 and os.path.basename(words[0]) == "pageferry" and words[1] == word:
            if directory in words and processes.state(pid) not in (None, "Z", "X"):
                found.append(pid)
    return found


def kill(case, scene):
    if case.victim.endswith("-qemu"):
        return _kill_qemu(case, scene)
    running = scene.start(case, "kill")
    outcome = running.wait(180)
    if case.victim == "source-tool":
        if outcome.code != -signal.SIGKILL:
            raise RuntimeError(f"the fail point was not reached: {outcome.explain()}")
        wait_for(lambda: not tools_of(scene.guest, "agent"), "the agent's end", timeout_s=120)
    return outcome


def _kill_qemu(case, scene):
    running = scene.start_and_reach(case)
    at_source = case.victim == "source-qemu"
    victims = [
        process
        for process in processes.qemus_of(scene.guest.uuid)
        if (process.pid == scene.source_pid) == at_source
    ]
    for process in victims:
        os.kill(process.pid, signal.SIGKILL)
    # Its memory is given back before it counts as dead: the tool must not meet it half-dead, at a
    # later point than the row's.
    wait_for(lambda: not any(process.alive() for process in victims), "the end of QEMU")
    scene.guest.reap()
    scene.go_on()
    return running.wait(180)


def _start_and_stop(case, scene, *options):
    """(migration, pid of the tool that stopped itself at the case's point)."""
    running = scene.start(case, "stop", *options)
    word = "migrate" if case.victim == "source-tool" else "agent"

    def stopped():
        return [pid for pid in tools_of(scene.guest, word) if processes.state(pid) == "T"]

    return running, wait_for(stopped, f"{word} stopped at {case.point}", running)[0]


def _continue(pid):
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass


def stop(case, scene):
    running, pid = _start_and_stop(case, scene)
    time.sleep(HOLD_S)
    _continue(pid)
    return running.wait(180)


def stop_past_limit(case, scene):
    running, pid = _start_and_stop(case, scene, "--blackout-limit", 1)
    time.sleep(HOLD_S)
    _continue(pid)
    return running.wait(180)


def recover_stopped(case, scene):
    running, pid = _start_and_stop(case, scene)
    outcome = scene.recover()
    scene.operator = f"recover while it was stopped: exit {outcome.code}"
    if outcome.code != 0:
        raise RuntimeError(f"recover: {outcome.explain()}")
    _continue(pid)
    return running.wait(180)


def recover_apart(case, scene):
    running, pid = _start_and_stop(case, scene)
    outcome = scene.recover("--run-dir", scene.directory / "other")
    scene.operator = f"recover beside it, no lock in common: exit {outcome.code}"
    if outcome.code not in (0, 5, 7):
        raise RuntimeError(f"recover: {outcome.explain()}")
    _continue(pid)
    return running.wait(180)


def full(case, scene):
    if case.point == "start":
        scene.small_store.fill()
        return _ended_without_room(scene, scene.start(case, ""))
    running = scene.start_and_reach(case)
    scene.small_store.fill()
    scene.go_on()
    if not case.meanwhile:
        return _ended_without_room(scene, running)
    hold(case, scene, running)
    scene.small_store.make_room()
    scene.operator = "room was made"
    return running.wait(180)


def nearly_full(case, scene):
    """Room for records, none for the head of a page file."""
    scene.small_store.fill(leave_bytes=8 << 20)
    return _ended_without_room(scene, scene.start(case, ""))


def _ended_without_room(scene, running):
    """The guest runs on and nothing is left, while the store is still full."""
    outcome = running.wait(180)
    expect_running(scene, "the store is still full")
    errors = [value for _, value in outcome.objects if value.get("event") == "error"]
    if len(errors) != 1 or "space" not in str(errors[0]):
        raise RuntimeError(f"not one clear line: {errors}")
    left = [str(path) for path in scene.store.glob("*/*") if path.is_dir()]
    left += [str(path) for path in scene.store.rglob(".new.*")]
    if left:
        raise RuntimeError(f"left on the store: {left}")
    scene.small_store.make_room()
    return outcome


def hang(case, scene):
    limit = ("--blackout-limit", LIMIT_S) if case.meanwhile == "resumes" else ()
    running = scene.start_and_reach(case, *limit)
    scene.small_store.freeze()
    scene.go_on()
    hold(case, scene, running)
    scene.small_store.thaw()
    scene.operator = "the store came back"
    return running.wait(180)


def hang_abort(case, scene):
    running = scene.start_and_reach(case)
    scene.small_store.freeze()
    scene.go_on()
    run_dir = ferry.run_directory(scene.guest)
    answer = ferry.Running("abort", "--name", scene.guest.uuid, "--run-dir", run_dir).wait(30)
    if answer.code != 0:
        raise RuntimeError(f"abort: {answer.explain()}")
    running.wait_object(lambda said: said.get("event") == "error", 30)
    hold(case, scene, running)
    scene.small_store.thaw()
    scene.operator = "abort; the tool ended when the store came back"
    return running.wait(180)


def expect_running(scene, why, timeout_s=10):
    """New heartbeats come."""
    now = scene.guest.follower.snapshot()[-1].counter
    try:
        scene.guest.follower.wait_beat(lambda beat: beat.counter > now + BEATS, timeout_s)
    except TimeoutError as error:
        raise RuntimeError(f"the guest does not run though it should: {why}") from error


def hold(case, scene, running):
    """Keeps the fault up and sees that meanwhile the guest does what the case says."""
    if case.meanwhile == "runs":
        expect_running(scene, f"{case.name} lasts")
        time.sleep(HOLD_S)
        expect_running(scene, f"{case.name} lasts still")
        return
    if case.meanwhile == "resumes":
        expect_running(scene, f"{case.name} has lasted {RESUME_S} s", RESUME_S)
        if scene.watcher.running_pids() != [scene.source_pid]:
            raise RuntimeError("the guest does not run at the source")
        return
    deadline = time.monotonic() + HOLD_S
    while time.monotonic() < deadline:
        if found := scene.watcher.running_pids():
            raise RuntimeError(f"QEMU {found} runs the guest while {case.name} lasts")
    if running.process.poll() is not None:
        raise RuntimeError(f"the tool did not wait: {running.wait().explain()}")


FAULTS = {
    "kill": kill,
    "stop": stop,
    "stop-past-limit": stop_past_limit,
    "recover-stopped": recover_stopped,
    "recover-apart": recover_apart,
    "full": full,
    "nearly-full": nearly_full,
    "hang": hang,
    "hang-abort": hang_abort,
}
