#!/usr/bin/env python3
"""From the image's commit to the guest's first instruction at the destination, for a small and a large guest.

A guest in KVM (demo VMM) is moved back and forth, the sizes in turn. What is added up, for each move:

  commit-to-run-us     the tool: the commit record is durable -> the VMM has answered RESUME
  first-word-after-us  the destination's VMM: it was told to resume -> the guest asked it for something, which takes many instructions
                       and all the pages that they need

Both hold the time that the VMM takes to answer RESUME: the sum is more than what it stands for.

    tests/bench/first_instruction.py [--runs 9] [--mib 256,8192] [--check]
"""

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "harness"))
from hook_rig import HookRig

LIMIT_MS = 10.0
RATIO_MAX = 1.2
GUEST = ["--write-rate-mib-s", "20", "--working-set-mib", "64"]
PARTS = ("shut", "release", "open-image", "load-devices", "owner", "running", "cont")


def one_move(rig, vm):
    outcome = rig.run(vm, "migrate", timeout_s=300)
    if outcome.code != 0:
        raise SystemExit(f"FAIL {outcome.explain()}")
    vm.runs_at(outcome.final["destination"])
    vm.expect_works()
    word_us = vm.status()["first-word-after-us"]
    return {
        "ms": (outcome.final["commit-to-run-us"] + word_us) / 1000,
        "word": word_us / 1000,
        "downtime": outcome.final["downtime"],
        **{part: outcome.final["downtime-split"].get(part, 0) for part in PARTS},
    }


def median(moves, name):
    return statistics.median(move[name] for move in moves)


def print_table(sizes, moves):
    titles = ["guest, MiB", "commit to first instruction, ms", "range", "first word", "downtime", *PARTS]
    print("| " + " | ".join(titles) + " |")
    print("|---" * len(titles) + "|")
    for mib in sizes:
        taken = [move["ms"] for move in moves[mib]]
        figures = [f"{median(moves[mib], name):.1f}" for name in ("word", "downtime", *PARTS)]
        cells = [str(mib), f"{statistics.median(taken):.1f}", f"{min(taken):.1f} - {max(taken):.1f}", *figures]
        print("| " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--mib", default="256,8192")
    parser.add_argument("--check", action="store_true", help=f"exit 1 above {LIMIT_MS} ms, or a ratio above {RATIO_MAX}")
    arguments = parser.parse_args()
    sizes = [int(mib) for mib in arguments.mib.split(",")]
    moves = {mib: [] for mib in sizes}
    with HookRig() as rig:
        guests = {mib: rig.vm(name=f"g{mib}", memory_mib=mib, vcpus="kvm", options=GUEST) for mib in sizes}
        for _ in range(arguments.runs):
            for mib, guest in guests.items():
                moves[mib].append(one_move(rig, guest))
    print_table(sizes, moves)
    medians = [median(moves[mib], "ms") for mib in sizes]
    ratio = max(medians) / min(medians)
    kept = max(medians) <= LIMIT_MS and ratio <= RATIO_MAX
    print(f"ratio {ratio:.2f} (bound {RATIO_MAX}), longest {max(medians):.1f} ms (bound {LIMIT_MS:.0f}): "
          + ("kept" if kept else "MISSED"))
    return 1 if arguments.check and not kept else 0


if __name__ == "__main__":
    sys.exit(main())
