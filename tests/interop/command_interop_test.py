#!/usr/bin/env python3
"""The commands of pageferry, as a user gives them, on a real small guest.

    tests/interop/command_interop_test.py [--qemu 10|7.2] CASE...

Each case is a function in one of the command_*_cases.py beside this file; its first words say what
holds. Ends with exit code 1 and the statement that does not hold.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "harness"))
import command_guest_cases  # noqa: E402
import command_placement_cases  # noqa: E402
import command_refusal_cases  # noqa: E402
import command_stop_cases  # noqa: E402
import command_store_cases  # noqa: E402
import machine  # noqa: E402
from command_rig import Rig  # noqa: E402

CASES = {
    **command_stop_cases.CASES,
    **command_store_cases.CASES,
    **command_refusal_cases.CASES,
    **command_guest_cases.CASES,
    **command_placement_cases.CASES,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qemu", choices=("10", "7.2"), default="10")
    parser.add_argument("case", nargs="+", choices=sorted(CASES), metavar="CASE")
    arguments = parser.parse_args()
    machine.prepare()
    for name in arguments.case:
        started = time.monotonic()
        print(f"--- {name}: {' '.join(CASES[name].__doc__.split())}", flush=True)
        with Rig(arguments.qemu) as rig:
            CASES[name](rig)
        print(f"--- {name}: {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
