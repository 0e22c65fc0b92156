#!/usr/bin/env python3
"""A guest that dirties memory faster than it can be written: the move still ends, in bounded time
and space, or says so and gives up.

    tests/soak/dirty_rates.py [--qemu 10|7.2] [--rate 300] [--ws 256,1024]
                              [--max-downtime 300] [--timeout 60] [--store DIR]

For each working set, a 2 GiB guest dirties `rate` MiB/s in it. First `--timeout-action switch`,
then `--timeout-action abort`:

  switch  the guest runs at the destination; the move took at most timeout + the bound below; the
          tail of the page file is at most 2 x max-downtime x the storage's write speed, unless the
          tool warned before the switch that it would be more; the page file is at most RAM + tail +
          2 %
  abort   either it converged (as above), or the exit code is 6 and the guest runs on at the source,
          having been stopped at no time for longer than max-downtime

In every case: no bad page, no heartbeat lost, never ran twice.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "harness"))
import ferry  # noqa: E402
import heartbeats  # noqa: E402
import machine  # noqa: E402
import raw_disk  # noqa: E402
from measure import SpaceSampler  # noqa: E402
from pf_guest import Config, Guest  # noqa: E402
from watcher import Watcher  # noqa: E402

MEMORY_MIB = 2048
FILL_MIB = 1433
RATE_SHARE = 0.8  # of the rate that is asked for: what a machine must be able to do for this test
AFTER_TIMEOUT_S = 60  # last pass, blackout, restore and prefetch of everything


def check(guest, outcome, store_bytes, arguments, write_mib_s, action):
    wrong = []
    converged = outcome.code == 0
    if outcome.code not in ((0,) if action == "switch" else (0, 6)):
        return [outcome.explain()]
    warned = any(value.get("event") == "warning" for _, value in outcome.objects)
    took = outcome.ended - outcome.started
    if took > arguments.timeout + AFTER_TIMEOUT_S:
        wrong.append(f"it took {took:.0f} s")
    silence_ms = 1000 * heartbeats.silence_around_s(
        guest.follower.snapshot(), outcome.started, outcome.ended
    )
    if converged:
        tail_bound = 2 * arguments.max_downtime / 1000 * write_mib_s
        tail = outcome.final["page-file"]["tail-bytes"] / 2**20
        if tail > tail_bound and not warned:
            wrong.append(f"a tail of {tail:.0f} MiB, bound {tail_bound:.0f}, without a warning")
        space_bound = (MEMORY_MIB + tail) * 1.02
        if store_bytes / 2**20 > space_bound:
            wrong.append(f"{store_bytes / 2**20:.0f} MiB on the store, bound {space_bound:.0f}")
        print(
            f"   tail {tail:.0f} MiB (bound {tail_bound:.0f}), store {store_bytes / 2**20:.0f} MiB (bound {space_bound:.0f})"
        )
    elif silence_ms > arguments.max_downtime:
        wrong.append(f"an aborted move silenced the guest for {silence_ms:.0f} ms")
    print(
        f"   exit {outcome.code}, {took:.1f} s, silence {silence_ms:.0f} ms, warned beforehand: {'yes' if warned else 'no'}",
        flush=True,
    )
    return wrong


def dirty_rate(guest):
    """What the guest really dirties, MiB/s: less than it was asked for where the machine is too
    slow."""
    begin = guest.follower.snapshot()[-1]
    end = guest.follower.wait_beat(lambda beat: beat.at > begin.at + 3, 60)
    return (end.dirtied - begin.dirtied) / 256 / (end.at - begin.at)


def one(arguments, working_set_mib, action, store, write_mib_s):
    config = Config(
        version=arguments.qemu,
        memory_mib=MEMORY_MIB,
        fill_mib=FILL_MIB,
        dirty_mib_s=arguments.rate,
        dirty_ws_mib=working_set_mib,
    )
    with tempfile.TemporaryDirectory(prefix="pf-soak-") as directory, Guest(
        config, directory
    ) as guest:
        guest.wait_ready()
        rate = dirty_rate(guest)
        with Watcher(guest) as watcher, SpaceSampler(store) as space:
            outcome = ferry.migrate(
                guest,
                store,
                "--max-downtime",
                arguments.max_downtime,
                "--timeout",
                arguments.timeout,
                "--timeout-action",
                action,
                timeout_s=arguments.timeout + 2 * AFTER_TIMEOUT_S,
            )
            last = guest.follower.snapshot()[-1]
            guest.follower.wait_beat(lambda beat: beat.counter > last.counter + 100, 30)
        print(f"{rate:.0f} MiB/s over {working_set_mib} MiB, --timeout-action {action}")
        wrong = check(guest, outcome, space.largest, arguments, write_mib_s, action)
        if rate < RATE_SHARE * arguments.rate:
            wrong.append(f"the guest dirtied {rate:.0f} MiB/s only: this shows nothing")
        guest.pause_dirtying()
        bad = guest.full_check()
        return (
            wrong + watcher.violations() + guest.verdict() + ([f"{bad} bad pages"] if bad else [])
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qemu", choices=("10", "7.2"), default="10")
    parser.add_argument("--rate", type=int, default=300)
    parser.add_argument("--ws", default="256,1024", help="working sets, MiB")
    parser.add_argument("--max-downtime", type=int, default=300)
    parser.add_argument("--timeout", type=int, default=60)
    parser.add_argument(
        "--store", default="/var/tmp", help="a directory in which stores are made for the test"
    )
    arguments = parser.parse_args()
    machine.prepare()
    failed = False
    for working_set_mib in map(int, arguments.ws.split(",")):
        for action in ("switch", "abort"):
            store = Path(tempfile.mkdtemp(prefix="pageferry-soak-", dir=arguments.store))
            try:
                write_mib_s, _ = raw_disk.speeds(store)
                wrong = one(arguments, working_set_mib, action, store, write_mib_s)
            finally:
                shutil.rmtree(store)
            for line in wrong:
                print(f"   WRONG: {line}", flush=True)
            failed = failed or bool(wrong)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
