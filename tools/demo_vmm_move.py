#!/usr/bin/env python3
"""The part of tools/demo --vmm behind the build: the demo VMM's guest is moved there and back while
it works, and judges its memory."""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "harness"))
from demo_vm import DemoVm  # noqa: E402

FIGURES = ("downtime", "eviction-time", "time-to-run", "time-to-resident")


def move(vm, store):
    outcome = vm.start("migrate", "--store", store, "--to", "local").wait(300)
    if outcome.code != 0:
        raise SystemExit(outcome.explain())
    vm.runs_at(outcome.final["destination"])
    verdict = vm.ask("check")
    print(f"   pid {vm.pid}, epoch {outcome.final['claim']['epoch']}")
    for name in FIGURES:
        print(f"   {name:<18} {outcome.final[name]:>6} ms")
    print(f"   pages verified     {verdict['verified-pages']:>6}, bad {verdict['bad-pages']}")
    return verdict["bad-pages"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vmm", action="store_true")
    parser.add_argument("--memory-mib", type=int, default=256)
    parser.add_argument("--store")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pageferry-demo-") as directory:
        store = arguments.store or tempfile.mkdtemp(prefix="store-", dir=directory)
        vm = DemoVm(directory, memory_mib=arguments.memory_mib)
        try:
            print(f"\n== the guest runs in the demo VMM, pid {vm.pid}")
            bad = 0
            for number in (1, 2):
                print(f"\n== move {number}")
                bad += move(vm, store)
        finally:
            vm.stop()
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
