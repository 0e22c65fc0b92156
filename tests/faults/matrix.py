#!/usr/bin/env python3
"""Kills, stops and starves everything that takes part in a migration, at every phase, and shows who
owns the guest afterwards and how it was brought back.

    tests/faults/matrix.py [--only SUBSTRING]... [--qemu 10|7.2] [--placement auto|direct|stream]
                           [--repeat N] [--store DIR] [--list] [--markdown FILE]

Each case: a real guest that checks its own memory, one fault at one point (`--fail-at`,
docs/fault-injection.md), then what an operator would do: nothing, or `pageferry recover`. Then the
guest must run exactly where the table says, with no bad page, having never run twice (watched
from outside), and the next migration must succeed and leave nothing on the store. A guest may be
lost only where the QEMU that ran it was itself killed. Prints the table; ends with 1 if a row is
not as it should be. Needs root (loop mounts).
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "harness"))
import ferry  # noqa: E402
import leftovers  # noqa: E402
import machine  # noqa: E402
import processes  # noqa: E402
from cases import all_cases  # noqa: E402
from injections import BEATS, FAULTS, Scene  # noqa: E402
from pf_guest import Config, Guest  # noqa: E402
from qmp import QmpError  # noqa: E402
from small_store import SmallStore  # noqa: E402
from watcher import Watcher  # noqa: E402

SMALL_STORE_MIB = 1024
MEMORY_MIB = 384
FILL_MIB = 160
DIRTY_MIB_S = 30
DIRTY_WS_MIB = 64


@dataclass
class Row:
    case: object
    where: str = "?"
    code: object = None
    operator: str = ""
    wrong: list = field(default_factory=list)
    seconds: float = 0.0


def runner(scene):
    """The QEMU that runs the guest, or None."""
    running = scene.watcher.running_pids()
    return next((p for p in processes.qemus_of(scene.guest.uuid) if p.pid in running), None)


def settle(scene):
    """Brings the guest back as an operator would."""
    scene.guest.reap()
    if runner(scene) is None:
        outcome = scene.recover()
        after = "" if scene.operator == "nothing" else f"{scene.operator}; "
        scene.operator = f"{after}recover: exit {outcome.code}"
        if outcome.code not in (0, 8):
            raise RuntimeError(f"recover: {outcome.explain()}")


def judge(row, scene):
    """Says in the row where the guest is and what is wrong with it."""
    process = runner(scene)
    if process is None:
        row.where = "lost"
    else:
        row.where = "source" if process.pid == scene.source_pid else "destination"
        guest = scene.guest
        monitors = [path for path in process.monitors() if "watch" not in os.path.basename(path)]
        guest.adopt(process.pid, monitors[-1])
        beat = guest.follower.snapshot()[-1]
        guest.follower.wait_beat(lambda now: now.counter > beat.counter + BEATS, 30)
        bad = guest.full_check()
        row.wrong += guest.verdict() + ([f"{bad} bad pages"] if bad else [])
    if row.where not in row.case.owners:
        row.wrong.append(f"the guest is at {row.where}, expected {sorted(row.case.owners)}")


def end_stopped_qemus(row, scene):
    """A QEMU whose guest runs elsewhere is ended by a tool; where none is left, by `recover`."""
    if not leftovers.stray_qemus(scene.guest.uuid, scene.guest.pid):
        return
    outcome = scene.recover()
    scene.operator += f"; recover ended the stopped QEMU: exit {outcome.code}"
    row.wrong += leftovers.stray_qemus(scene.guest.uuid, scene.guest.pid)


def move_again(row, scene):
    """The VM is as good as any other: its next migration succeeds and cleans up."""
    again = ferry.migrate(scene.guest, scene.store)
    if again.code != 0:
        row.wrong.append(f"the next migration: {again.explain()}")
        return
    if scene.guest.full_check():
        row.wrong.append("bad pages after the next migration")
    row.wrong += [f"left on the store: {path}" for path in leftovers.attempts(scene.store)]
    row.wrong += leftovers.stray_qemus(scene.guest.uuid, scene.guest.pid)
    row.wrong += leftovers.stray_tools(scene.directory)


def play(row, scene):
    outcome = FAULTS[row.case.fault](row.case, scene)
    killed = row.case.fault == "kill" and row.case.victim == "source-tool"
    row.code = None if killed else outcome.code
    settle(scene)
    judge(row, scene)
    if row.code is not None and row.code not in row.case.code:
        row.wrong.append(f"exit code {row.code}, expected {row.case.code}: {outcome.explain()}")
    if row.where != "lost":
        end_stopped_qemus(row, scene)
        move_again(row, scene)
    row.operator = scene.operator


def make_store(case, root, stack):
    """(directory of the store, SmallStore or None)."""
    directory = tempfile.mkdtemp(prefix="pageferry-faults-", dir=root)
    stack.callback(shutil.rmtree, directory)
    if case.victim != "store":
        return Path(directory), None
    small = stack.enter_context(SmallStore(directory, SMALL_STORE_MIB))
    return small.path, small


def guest_config(case, arguments, directory):
    config = Config(
        version=arguments.qemu,
        memory_mib=MEMORY_MIB,
        fill_mib=FILL_MIB,
        dirty_mib_s=DIRTY_MIB_S,
        dirty_ws_mib=DIRTY_WS_MIB,
    )
    if case.fault == "recover-apart":  # QMP serves one client at a time: one that nobody holds
        config.extra = ["-qmp", f"unix:{directory}/spare.sock,server=on,wait=off"]
    return config


def run_case(case, arguments):
    row = Row(case)
    started = time.monotonic()
    with ExitStack() as stack:
        store, small = make_store(case, arguments.store, stack)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pf-faults-")))
        if small:
            stack.callback(small.thaw)  # before the guest's processes are waited for
        guest = stack.enter_context(Guest(guest_config(case, arguments, directory), directory))
        guest.wait_ready()
        watcher = stack.enter_context(Watcher(guest))
        watcher.wait_for_first_look()
        scene = Scene(guest, store, small, directory, watcher, guest.pid, arguments.placement)
        try:
            play(row, scene)
        except (RuntimeError, TimeoutError, OSError, QmpError, subprocess.SubprocessError) as error:
            row.wrong.append(f"{type(error).__name__}: {error}")
        row.wrong += watcher.violations()
        if small:
            small.thaw()
    row.seconds = time.monotonic() - started
    return row


def shown_code(row):
    if row.code is None:
        return "-"
    return "killed" if row.code < 0 else str(row.code)


def write_markdown(rows, path):
    lines = [
        "| victim | fault | point | guest is at | brought back by | exit of `migrate` |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        case = row.case
        lines.append(
            f"| {case.victim} | {case.fault} | `{case.point}` | {row.where} | {row.operator}"
            f" | {shown_code(row)} |"
        )
    Path(path).write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", help="cases whose name contains this")
    parser.add_argument("--qemu", choices=("10", "7.2"), default="10")
    parser.add_argument("--placement", choices=("auto", "direct", "stream"), default="auto")
    parser.add_argument("--repeat", type=int, default=1, help="each case so many times")
    parser.add_argument("--store", default="/var/tmp")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--markdown", metavar="FILE", help="writes the table, good rows only")
    arguments = parser.parse_args()
    words = arguments.only or [""]
    chosen = [case for case in all_cases() if any(word in case.name for word in words)]
    if arguments.list:
        print("\n".join(case.name for case in chosen))
        return
    machine.prepare()
    rows = []
    print(f"{'case':<58} {'guest is at':<12} {'exit':<6} {'seconds':<7} brought back by")
    for case in [case for case in chosen for _ in range(arguments.repeat)]:
        row = run_case(case, arguments)
        rows.append(row)
        figures = f"{row.where:<12} {shown_code(row):<6} {row.seconds:<7.1f}"
        print(f"{case.name:<58} {figures} {row.operator}", flush=True)
        for line in row.wrong:
            print(f"    WRONG: {line}", flush=True)
    good = [row for row in rows if not row.wrong]
    if arguments.markdown:
        write_markdown(good, arguments.markdown)
    print(f"{len(good)} passed, {len(rows) - len(good)} failed")
    if len(good) < len(rows) or not chosen:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
