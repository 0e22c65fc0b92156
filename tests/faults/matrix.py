#!/usr/bin/env python3
"""Kills, stops and starves everything that takes part in a migration, at every phase, and shows who
owns the guest afterwards and how it was brought back.

    tests/faults/matrix.py [--only SUBSTRING] [--qemu 10|7.2] [--store DIR] [--list]

Each case: a real guest that checks its own memory, one fault at one point (`--fail-at`,
docs/fault-injection.md), then what an operator would do: nothing, or `pageferry recover`. Then the
guest must run exactly where the table below says, with no bad page, having never run twice (watched
from outside), and the next migration must succeed. A guest may be lost only where the QEMU that ran
it was itself killed. Prints the table; ends with 1 if a row is not as it should be.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "harness"))
import ferry  # noqa: E402
import machine  # noqa: E402
import processes  # noqa: E402
from pf_guest import Config, Guest  # noqa: E402
from watcher import Watcher  # noqa: E402

BEFORE_SHUT = (
    "source.setup",
    "source.pass1",
    "source.later-pass",
    "source.blackout",
    "source.before-commit",
    "source.before-shut",
)
AFTER_SHUT = ("source.after-shut", "source.after-release")
DESTINATION = (
    "destination.prepared",
    "destination.loaded",
    "destination.after-owner",
    "destination.after-running",
    "destination.restoring",
)
PAUSE_S = 2.0
BANDWIDTH_MIB_S = 80  # slow enough that every pass is seen


@dataclass(frozen=True)
class Case:
    victim: str  # source-tool, destination-tool, source-qemu, destination-qemu
    fault: str  # kill, stop (SIGSTOP, later SIGCONT), recover-stopped (recover while it is stopped)
    point: str
    owner: str  # where the guest must be: source, destination, lost
    code: tuple  # accepted exit codes of migrate; () when it was killed itself

    @property
    def name(self):
        return f"{self.victim}/{self.fault}/{self.point}"


def all_cases():
    cases = []
    for point in BEFORE_SHUT:
        cases.append(Case("source-tool", "kill", point, "source", ()))
        cases.append(Case("source-tool", "stop", point, "destination", (0,)))
        cases.append(Case("source-qemu", "kill", point, "lost", (8,)))
    cases.append(Case("source-tool", "kill", "source.after-shut", "source", ()))
    cases.append(Case("source-tool", "kill", "source.after-release", "destination", ()))
    for point in AFTER_SHUT:
        cases.append(Case("source-tool", "stop", point, "destination", (0,)))
        cases.append(Case("source-qemu", "kill", point, "destination", (0,)))
    cases.append(Case("source-tool", "recover-stopped", "source.after-shut", "source", ()))
    owners = {
        "destination.prepared": ("source", (1,)),
        "destination.loaded": ("source", (1,)),
        "destination.after-owner": ("destination", (0,)),
        "destination.after-running": ("destination", (0,)),
        "destination.restoring": ("destination", (0,)),
    }
    for point in DESTINATION:
        owner, code = owners[point]
        cases.append(Case("destination-tool", "kill", point, owner, code))
        cases.append(Case("destination-tool", "stop", point, "destination", (0,)))
    cases.append(
        Case("destination-tool", "recover-stopped", "destination.after-owner", "destination", (0, 7))
    )
    for point in ("destination.prepared", "destination.loaded", "destination.after-owner"):
        cases.append(Case("destination-qemu", "kill", point, "source", (1,)))
    cases.append(Case("destination-qemu", "kill", "destination.after-running", "any", (0, 1, 7, 8)))
    cases.append(Case("destination-qemu", "kill", "destination.restoring", "lost", (7, 8)))
    return cases


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


def wait_for(condition, what, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise TimeoutError(f"{what} within {timeout_s} s")


def recover(guest, store, timeout_s=120):
    return ferry.Running(
        "recover", "--store", store, "--name", guest.uuid, "--run-dir", ferry.run_directory(guest)
    ).wait(timeout_s)


def inject(case, guest, store, directory):
    """Runs one migration with the fault; returns (exit code or None, what an operator did)."""
    mark = Path(directory) / "go-on"
    actions = {"kill": "kill", "stop": "stop", "recover-stopped": "stop"}
    by_tool = case.victim.endswith("-tool")
    action = actions[case.fault] if by_tool else f"wait:{mark}"
    source_pid = guest.pid
    running = ferry.start_migration(
        guest, store, "--bandwidth", BANDWIDTH_MIB_S, "--fail-at", f"{case.point}={action}"
    )
    operator = "nothing"
    if by_tool and case.fault != "kill":
        word = "migrate" if case.victim == "source-tool" else "agent"

        def stopped():
            return [pid for pid in tools_of(guest, word) if processes.state(pid) == "T"]

        pid = wait_for(stopped, f"{word} stopped at {case.point}")[0]
        time.sleep(PAUSE_S)
        if case.fault == "recover-stopped":
            outcome = recover(guest, store)
            operator = f"recover while it was stopped: exit {outcome.code}"
            if outcome.code != 0:
                raise SystemExit(f"{case.name}: {outcome.explain()}")
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass
    elif not by_tool:
        wait_for(Path(f"{mark}.reached").exists, f"{case.point} reached")
        if case.victim == "source-qemu":
            os.kill(source_pid, signal.SIGKILL)
        else:
            for process in processes.qemus_of(guest.uuid):
                if process.pid != source_pid:
                    os.kill(process.pid, signal.SIGKILL)
        guest.reap()
        mark.touch()
    outcome = running.wait(180)
    if case.fault == "kill" and case.victim == "source-tool":
        if outcome.code != -signal.SIGKILL:
            raise SystemExit(f"{case.name}: the fail point was not reached: {outcome.explain()}")
        wait_for(lambda: not tools_of(guest, "agent"), "the agent's end", 120)
        return None, operator, outcome
    return outcome.code, operator, outcome


def settle(case, guest, store, operator, watcher):
    """Brings the guest back as an operator would; returns what was done."""
    guest.reap()
    if runner(guest, watcher) is None:
        outcome = recover(guest, store)
        operator = f"recover: exit {outcome.code}"
        if outcome.code not in (0, 8):
            raise SystemExit(f"{case.name}: {outcome.explain()}")
    return operator


def runner(guest, watcher):
    """The QEMU that runs the guest, or None."""
    running = watcher.running_pids()
    return next((found for found in processes.qemus_of(guest.uuid) if found.pid in running), None)


def judge(case, guest, source_pid, watcher):
    """(where the guest is, what is wrong)."""
    process = runner(guest, watcher)
    if process is None:
        where = "lost"
        wrong = []
    else:
        where = "source" if process.pid == source_pid else "destination"
        monitors = [path for path in process.monitors() if "watch" not in os.path.basename(path)]
        guest.adopt(process.pid, monitors[-1])
        beat = guest.follower.snapshot()[-1]
        guest.follower.wait_beat(lambda now: now.counter > beat.counter + 20, 30)
        bad = guest.full_check()
        wrong = guest.verdict() + ([f"{bad} bad pages"] if bad else [])
    allowed = {case.owner} if case.owner != "any" else {"source", "destination", "lost"}
    if where not in allowed:
        wrong.append(f"the guest is at {where}, expected {case.owner}")
    return where, wrong


def run_case(case, arguments, store_root):
    config = Config(
        version=arguments.qemu, memory_mib=512, fill_mib=200, dirty_mib_s=30, dirty_ws_mib=64
    )
    store = Path(tempfile.mkdtemp(prefix="pageferry-faults-", dir=store_root))
    try:
        with tempfile.TemporaryDirectory(prefix="pf-faults-") as directory, Guest(
            config, directory
        ) as guest:
            guest.wait_ready()
            source_pid = guest.pid
            with Watcher(guest) as watcher:
                code, operator, outcome = inject(case, guest, store, directory)
                operator = settle(case, guest, store, operator, watcher)
                where, wrong = judge(case, guest, source_pid, watcher)
                if code is not None and case.code and code not in case.code:
                    wrong.append(f"exit code {code}, expected {case.code}: {outcome.explain()}")
                if where != "lost":
                    again = ferry.migrate(guest, store)
                    if again.code != 0:
                        wrong.append(f"the next migration: {again.explain()}")
                    elif guest.full_check():
                        wrong.append("bad pages after the next migration")
                wrong += watcher.violations()
    finally:
        shutil.rmtree(store)
    return where, code, operator, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--qemu", choices=("10", "7.2"), default="10")
    parser.add_argument("--store", default="/var/tmp")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    chosen = [case for case in all_cases() if arguments.only in case.name]
    if arguments.list:
        print("\n".join(case.name for case in chosen))
        return
    machine.prepare()
    failed = 0
    print(f"{'case':<58} {'guest is at':<12} {'exit':<5} brought back by")
    for case in chosen:
        try:
            where, code, operator, wrong = run_case(case, arguments, arguments.store)
        except (TimeoutError, SystemExit, OSError, subprocess.TimeoutExpired) as error:
            where, code, operator, wrong = "?", None, "", [f"{type(error).__name__}: {error}"]
        shown = "-" if code is None else code
        print(f"{case.name:<58} {where:<12} {shown!s:<5} {operator}", flush=True)
        for line in wrong:
            print(f"    WRONG: {line}", flush=True)
        failed += bool(wrong)
    print(f"{len(chosen) - failed} passed, {failed} failed")
    if failed or not chosen:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
