#!/usr/bin/env python3
"""Faults around whole moves of a VMM with a hook, at random from a seed.

    tests/soak/hook_faults.py [--faults 1000] [--seed 1] [--only KIND] [--memory-mib 64]

Moves the demo VMM's guest again and again while it writes, and gives memory back (each page of that is a
discard during a pass, or a removal while pages are missing). Each round one kind of harm is done, at
places and moments that the seed chooses. After each round, in words of the guest and of this host: the guest
runs in exactly one VMM, every page of its memory holds what it should, it works on; and no command
hung. Rounds go on until that many faults were put in; what counts as one is said at each kind. Ends
with 1 and the round's own words otherwise; the same seed repeats the choices (not the moments).
"""

import argparse
import collections
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "harness"))
import leftovers  # noqa: E402
import machine  # noqa: E402
import processes  # noqa: E402
from hook_rig import HookRig  # noqa: E402

ROUNDS_PER_VM = 25
MOVE_S = 1.5  # about how long a move takes, for moments inside it
BOUND_S = 60
POINTS = (
    "source.setup",
    "source.pass1",
    "source.blackout",
    "source.before-commit",
    "source.before-shut",
    "source.after-shut",
    "source.after-release",
    "destination.prepared",
    "destination.loaded",
    "destination.after-owner",
    "destination.after-running",
    "destination.restoring",
)


class Failed(Exception):
    pass


def check(condition, what):
    if not condition:
        raise Failed(what)


class Round:
    """One round: what it does to a move, and what must be true afterwards."""

    def __init__(self, rig, vm, chance):
        self.rig, self.vm, self.chance = rig, vm, chance

    # --- what is true afterwards

    def follow(self, outcome, codes):
        """The command ended with one of these codes; where that is 0, the guest is where it says."""
        check(outcome.code in codes, f"exit code is one of {codes}: {outcome.explain()}")
        named = outcome.final.get("destination") if outcome.code == 0 else None
        if named:
            self.vm.runs_at(named)
        return outcome.code

    def recover(self):
        """Whatever was left is brought to its end by one `recover`."""
        for _ in range(200):  # a destination's tool whose source's tool is gone finishes by itself
            if not leftovers.stray_tools(self.rig.store, self.vm.run_directory):
                break
            time.sleep(0.05)
        outcome = self.rig.run(self.vm, "recover", *self._address(), timeout_s=BOUND_S)
        self.follow(outcome, (0,))
        living = self.vm.living()
        check(len(living) == 1, f"one VMM of the guest is there: {living}; {outcome.explain()}")
        self._find(next(iter(living)))

    def _address(self):
        alive = processes.state(self.vm.pid) not in (None, "Z", "X")
        return [self.vm.vm] if alive else []

    def _find(self, pid):
        words = processes.command_line(pid)
        self.vm.runs_at({"pid": pid, "hook": words[words.index("--hook") + 1]})

    def expect_well(self):
        before = self.vm.status()["heartbeats"]
        deadline = time.monotonic() + 30
        while self.vm.status()["heartbeats"] <= before + 10:
            check(time.monotonic() < deadline, "the guest works on")
            time.sleep(0.01)
        verdict = self.vm.ask("check")
        check(verdict["bad-pages"] == 0, f"no page is wrong: {verdict}")
        check(verdict["state"] == "running", f"the guest runs: {verdict}")
        living = self.vm.living()
        check(living == {self.vm.pid}, f"it runs in one VMM, {self.vm.pid}: {living}")
        tools = leftovers.stray_tools(self.rig.store, self.vm.run_directory)
        check(not tools, f"no tool is left: {tools}")

    # --- the kinds; each returns how many faults it put in

    def failing_writes(self):
        """A full disk or an I/O error while pages go out, sometimes a failed sync: one fault."""
        place = self.chance.choice(
            (
                f"write:nth={self.chance.randint(1, 40)}:eio",
                f"write:after={self.chance.randint(0, 40)}:enospc",
                "sync:nth=1:eio",
                f"allocate:nth={self.chance.randint(1, 2)}:enospc",
            )
        )
        outcome = self.rig.run(self.vm, "migrate", "--inject-store", place, timeout_s=BOUND_S)
        self.follow(outcome, (0, 1, 3))
        return 1

    def spoiled_writes(self):
        """Writes that the store acknowledges and loses, tears or flips: each one; --verify finds
        them before anything is given away."""
        places = sorted(self.chance.sample(range(2, 40), 6))
        harm = ",".join(
            f"write:nth={place}:{self.chance.choice(('lost', 'torn', 'flip'))}" for place in places
        )
        outcome = self.rig.run(
            self.vm, "migrate", "--verify", "--inject-store", harm, timeout_s=BOUND_S
        )
        self.follow(outcome, (0, 1))
        return len(places)

    def failing_reads(self):
        """Reads that fail or bring a wrong bit, while the guest is restored: each one."""
        places = sorted(self.chance.sample(range(12, 120), 15))
        harm = ",".join(
            f"read:nth={place}:{self.chance.choice(('eio', 'flip', 'flip'))}" for place in places
        )
        outcome = self.rig.run(self.vm, "migrate", "--inject-store", harm, timeout_s=BOUND_S)
        self.follow(outcome, (0, 1))
        return len(places)

    def slow_store(self):
        """Every write, or every read, is late: one."""
        kind = self.chance.choice(("write", "read"))
        harm = f"{kind}:delay-ms={self.chance.randint(1, 8)}"
        self.follow(
            self.rig.run(self.vm, "migrate", "--inject-store", harm, timeout_s=BOUND_S), (0,)
        )
        return 1

    def hanging_store(self):
        """A store that stops answering in the blackout (the limit ends it) or before (the time
        ends it): one. When a pass before the last needs a sync is the guest's choice."""
        if self.chance.random() < 0.5:
            harm, limit = "sync:hang", ("--blackout-limit", "1", "--timeout", "4")
        else:
            harm, limit = f"write:after={self.chance.randint(2, 20)}:hang", ("--timeout", "2")
        outcome = self.rig.run(
            self.vm, "migrate", "--inject-store", harm, *limit, timeout_s=BOUND_S
        )
        self.follow(outcome, (0, 1, 4, 6))
        return 1

    def killed_at_a_point(self):
        """kill -9 of either tool at a point of the hand-off: one."""
        point = self.chance.choice(POINTS)
        tool = self.rig.start(self.vm, "migrate", "--fail-at", f"{point}=kill")
        outcome = tool.wait(BOUND_S)
        if outcome.code == 0:
            self.follow(outcome, (0,))
        self.recover()
        return 1

    def killed_at_any_time(self):
        """kill -9 of either tool at a moment: one."""
        tool = self.rig.start(self.vm, "migrate")
        time.sleep(self.chance.uniform(0, MOVE_S))
        victims = [tool.process.pid] + self._agents()
        self._signal(self.chance.choice(victims), signal.SIGKILL)
        outcome = tool.wait(BOUND_S)
        if outcome.code == 0:
            self.follow(outcome, (0,))
        self.recover()
        return 1

    def stopped_and_continued(self):
        """Either tool is stopped for a while at a moment, up to three times: each one."""
        tool = self.rig.start(self.vm, "migrate")
        stops = self.chance.randint(1, 3)
        for _ in range(stops):
            time.sleep(self.chance.uniform(0, MOVE_S / stops))
            victim = self.chance.choice([tool.process.pid] + self._agents())
            self._signal(victim, signal.SIGSTOP)
            time.sleep(self.chance.uniform(0.05, 0.5))
            self._signal(victim, signal.SIGCONT)
        self.follow(tool.wait(BOUND_S), (0,))
        return stops

    def interrupted(self):
        """Ctrl-C at a moment: one."""
        tool = self.rig.start(self.vm, "migrate")
        time.sleep(self.chance.uniform(0, MOVE_S))
        self._signal(tool.process.pid, signal.SIGINT)
        outcome = tool.wait(BOUND_S)
        # A tool that has not begun to listen for it ends as any process does.
        if outcome.code == -signal.SIGINT:
            return 1
        self.follow(outcome, (0, 4))
        return 1

    def pagers_killed(self):
        """send, then pagers that are killed while pages are missing, one after the other: each
        one."""
        self.follow(self.rig.run(self.vm, "send", timeout_s=BOUND_S), (0,))
        tool, _ = self.rig.at_point(
            self.vm, "receive", "destination.restoring", "--prefetch", "none"
        )
        kills = self.chance.randint(1, 4)
        for _ in range(kills):
            time.sleep(self.chance.uniform(0, 0.2))
            self._signal(tool.process.pid, signal.SIGKILL)
            tool.process.wait()
            tool = self.rig.start(self.vm, "recover")
        self.follow(tool.wait(BOUND_S), (0,))
        return kills

    def _agents(self):
        return [
            pid
            for pid in processes.all_pids()
            if (words := processes.command_line(pid))
            and len(words) > 1
            and words[1] == "agent"
            and any(str(self.vm.run_directory) in word for word in words)
        ]

    @staticmethod
    def _signal(pid, number):
        subprocess.run(["kill", f"-{int(number)}", str(pid)], stderr=subprocess.DEVNULL, check=False)


KINDS = (
    Round.failing_writes,
    Round.spoiled_writes,
    Round.failing_reads,
    Round.failing_reads,
    Round.slow_store,
    Round.hanging_store,
    Round.killed_at_a_point,
    Round.killed_at_any_time,
    Round.stopped_and_continued,
    Round.interrupted,
    Round.pagers_killed,
)


def new_vm(rig, number, chance, memory_mib):
    kind = chance.choice(("memfd", "anonymous", "thp"))
    return rig.vm(
        name=f"vm{number}",
        memory_mib=memory_mib,
        options=(
            *("--memory-kind", kind, "--vcpus", 2, "--give-back-rate-mib-s", 8),
            *("--write-rate-mib-s", 30, "--read-rate-mib-s", 20, "--working-set-mib", 32),
        ),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--memory-mib", type=int, default=64)
    parser.add_argument("--only", choices=sorted({kind.__name__ for kind in KINDS}))
    arguments = parser.parse_args()
    machine.pageferry()
    chance = random.Random(arguments.seed)
    kinds = [kind for kind in KINDS if arguments.only in (None, kind.__name__)]
    done = collections.Counter()
    rounds, given_back = 0, 0
    started = time.monotonic()
    while sum(done.values()) < arguments.faults:
        with HookRig() as rig:
            vm = new_vm(rig, rounds, chance, arguments.memory_mib)
            for _ in range(ROUNDS_PER_VM):
                kind = chance.choice(kinds)
                one = Round(rig, vm, chance)
                try:
                    done[kind.__name__] += kind(one)
                    one.expect_well()
                except (Failed, SystemExit, OSError, subprocess.TimeoutExpired) as failure:
                    print(f"FAIL round {rounds} ({kind.__name__}, seed {arguments.seed}): {failure}")
                    raise SystemExit(1) from failure
                rounds += 1
                if sum(done.values()) >= arguments.faults:
                    break
            given_back += vm.status()["given-back-bytes"] >> 12
        print(
            f"{time.monotonic() - started:6.0f} s: {rounds} rounds, {sum(done.values())} faults,"
            f" {given_back} pages given back meanwhile; {dict(done)}",
            flush=True,
        )
    print("no page was wrong, no command hung, the guest never was in two VMMs or in none")


if __name__ == "__main__":
    main()
