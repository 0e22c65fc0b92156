"""The part of tools/demo that needs a guest: boots it, moves it with `pageferry migrate`, and lets
it judge its memory.

Started by tools/demo, which installs and builds what this needs. The figures come from two sources
that do not know of each other: the program's summary, and the guest's heartbeats as
tests/harness/heartbeats.py reads them. Ends with 0 if the guest is well and the move succeeded.
Whatever happens, no process and no file stays.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "harness"))
import ferry  # noqa: E402
import heartbeats  # noqa: E402
import leftovers  # noqa: E402
import machine  # noqa: E402
import processes  # noqa: E402
from event_recorder import EventRecorder  # noqa: E402
from pf_guest import Config, Guest  # noqa: E402


def step(text):
    print(f"\n== {text}", flush=True)


def run_pageferry(guest, store):
    """Runs it as a person would: progress on the terminal, the summary kept. Returns (summary,
    started, ended)."""
    command = [
        machine.pageferry(),
        "migrate",
        f"qemu:{guest.qmp_path}",
        "--store",
        str(store),
        "--to",
        "local",
        "--run-dir",
        str(ferry.run_directory(guest)),
    ]
    print("$ " + " ".join(command), flush=True)
    started = time.monotonic()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False
    )
    ended = time.monotonic()
    guest.reap()
    if done.returncode != 0:
        raise SystemExit(
            f"pageferry: exit {done.returncode} ({ferry.EXIT.get(done.returncode)})\n{done.stdout}{guest.qemu_log()}"
        )
    summary = dict(
        line.split(maxsplit=1)
        for line in done.stdout.splitlines()
        if len(line.split(maxsplit=1)) == 2
    )
    return summary, started, ended


def table(rows):
    step("summary")
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:{width}}  {value}")


def demonstrate(arguments, directory, store):
    config = Config(
        version=arguments.qemu,
        memory_mib=arguments.memory_mib,
        fill_mib=arguments.memory_mib * 7 // 10,
        dirty_mib_s=50,
        dirty_ws_mib=min(128, arguments.memory_mib // 4),
    )
    step(f"a Linux guest on QEMU {arguments.qemu}")
    with Guest(config, directory) as guest:
        print(
            f"booting with {config.memory_kib(guest.accelerator)} KiB of RAM on {guest.accelerator}"
            + ("" if guest.accelerator == "kvm" else " (no guest boots on KVM here)"),
            flush=True,
        )
        guest.wait_ready()
        print(
            f"it filled {config.fill_mib} MiB with content that it can verify, rewrites {config.dirty_mib_s} MiB/s of it, "
            f"checks {config.read_mib_s} MiB/s, and says that it is alive every {config.heartbeat_ms} ms"
        )
        old_pid = guest.pid
        time.sleep(2)
        with EventRecorder(guest) as recorder:
            step("pageferry moves it while it runs")
            summary, started, ended = run_pageferry(guest, store)
            resume = recorder.wait("RESUME", started, 10)[0]
            stop = recorder.times("STOP", started)[0][0]
            time.sleep(max(0.0, resume + 5.2 - time.monotonic()))
        running = processes.qemus_of(guest.uuid)
        if len(running) != 1:
            raise SystemExit(
                f"{len(running)} QEMUs run the guest: {[process.pid for process in running]}"
            )
        guest.adopt(running[0].pid, running[0].monitors()[0])
        step("the guest checks every page of its memory")
        bad = guest.full_check()
        beats = guest.follower.snapshot()
        wrong = guest.verdict() + leftovers.large_files(store)
        rows = [
            ("moved", f"from QEMU {old_pid} to QEMU {guest.pid}, {ended - started:.1f} s in all"),
            ("source may be powered off after", f"{summary['eviction-time']} ms"),
            ("guest stopped (QEMU's STOP to RESUME)", f"{1000 * (resume - stop):.0f} ms"),
            (
                "guest silent (its own heartbeats)",
                f"{1000 * heartbeats.silence_around_s(beats, stop, resume):.0f} ms",
            ),
            ("whole memory at the destination after", f"{summary['time-to-resident']} ms"),
            (
                "heartbeats in the first second, first 5 s",
                f"{heartbeats.percentage(beats, resume, 1.0):.0f} %, {heartbeats.percentage(beats, resume, 5.0):.0f} %",
            ),
            (
                "longest silence after RESUME",
                f"{1000 * heartbeats.longest_silence_s(beats, resume, resume + 5):.0f} ms",
            ),
            (
                "heartbeats",
                f"{len(beats)}, {len(heartbeats.counter_faults(beats))} lost or repeated",
            ),
            ("memory", f"{config.fill_mib * 256} pages checked, {bad} bad"),
        ]
        table(rows)
    print(
        "\nthe guest's verdict: "
        + ("its memory is intact" if not bad and not wrong else f"NOT WELL: {wrong}")
    )
    return not bad and not wrong


def main():
    parser = argparse.ArgumentParser(prog="tools/demo")
    parser.add_argument("--qemu", choices=("7.2", "10"), default="7.2")
    parser.add_argument("--memory-mib", type=int, default=1024)
    parser.add_argument(
        "--store",
        default=os.environ.get("TMPDIR", "/var/tmp"),
        help="a directory in which a store is made",
    )
    arguments = parser.parse_args()
    if arguments.memory_mib < 256:
        parser.error(f"--memory-mib {arguments.memory_mib}: at least 256")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit("ended by SIGHUP"))
    store = Path(tempfile.mkdtemp(prefix="pageferry-demo-", dir=arguments.store))
    try:
        with tempfile.TemporaryDirectory(prefix="pf-demo-") as directory:
            well = demonstrate(arguments, directory, store)
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None
    finally:
        shutil.rmtree(store)
    raise SystemExit(0 if well else 1)


if __name__ == "__main__":
    main()
