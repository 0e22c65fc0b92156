#!/usr/bin/env python3
"""`pageferry receive --firecracker` with a client that does what Firecracker does (firecracker_client.cc) and checks its memory itself.

    tests/interop/firecracker_interop_test.py --client FILE --maker FILE CASE...

Each case is a function below; its first words say what holds. Ends with exit code 1 and the statement that does not hold.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "harness"))
import ferry  # noqa: E402
import huge_pages  # noqa: E402
from damage import flip_bit  # noqa: E402
from statements import expect  # noqa: E402

PAGE = 4096
PAGES = 16384  # 64 MiB
REFUSED_WITHIN_S = 20


class Rig:
    """A memory file and a page file with the same content, tools and clients, all gone in the end."""

    def __init__(self, client, maker):
        self._client = client
        # Not in memory: O_DIRECT is part of what is tested.
        self.directory = Path(tempfile.mkdtemp(prefix="pf-fc-", dir="/var/tmp"))
        self.plain = self.directory / "memory"
        self.page_file = self.directory / "pages"
        subprocess.run([maker, self.plain, self.page_file, str(PAGES)], check=True)
        self.sources = {"plain": ("--memory-file", self.plain), "page file": ("--page-file", self.page_file)}
        self.socket = self.directory / "uffd.sock"
        self._processes = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        shutil.rmtree(self.directory)

    def tool(self, *options):
        running = ferry.Running("receive", "--firecracker", self.socket, *options)
        self._processes.append(running.process)
        return running

    def listening(self, *options):
        running = self.tool(*options)
        running.wait_object(lambda value: value.get("phase") == "listen", 30)
        return running

    def client(self, behaviour, page_bytes=PAGE):
        process = subprocess.Popen(
            [self._client, self.socket, str(PAGES), str(page_bytes), behaviour],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._processes.append(process)
        return process


def expect_code(outcome, code, text=""):
    errors = [value for _, value in outcome.objects if value["event"] == "error"]
    said = outcome.explain() + str(errors)
    expect(outcome.code == code and text in said, f"exit code {code}, says {text!r}: {said}")
    expect(len(errors) == (1 if code else 0), "errors are said in one line")


def expect_right(client, what):
    said, _ = client.communicate(timeout=60)
    expect(client.returncode == 0 and " 0 wrong" in said, f"{what}: {said.strip()[-500:]!r}")


def verify(rig):
    """Every page is right, from either file, in every order, whatever is asked for first."""
    for name, source in rig.sources.items():
        for order in ("hot", "linear", "none"):
            tool = rig.listening(*source, "--prefetch", order)
            expect_right(rig.client("verify"), f"{name}, {order}")
            outcome = tool.wait(30)
            expect_code(outcome, 0)
            ram = outcome.final["ram"]
            expect(ram["total"] == PAGES * PAGE, f"all memory is known: {ram}")
            expect(outcome.final["faults"]["count"] > 0, f"faults: {outcome.final['faults']}")
            expect(not rig.socket.exists(), "the socket is gone")


def close_early(rig):
    """A Firecracker that closes the connection after its message is served like any other."""
    tool = rig.listening(*rig.sources["plain"])
    expect_right(rig.client("close-early"), "the connection was closed")
    expect_code(tool.wait(30), 0)


def balloon(rig):
    """What the balloon gave back is zero, while pages come and when all are there; what was written then stays."""
    for name, source in rig.sources.items():
        for order in ("linear", "none"):
            tool = rig.listening(*source, "--prefetch", order)
            client = rig.client("balloon")
            expect(client.stdout.readline() == "first part done\n", f"{name}, {order}: while pages come")
            if order == "linear":
                tool.wait_object(lambda value: value.get("phase") == "resident", 30)
            client.stdin.write("go on\n")
            expect_right(client, f"{name}, {order}: to the end")
            outcome = tool.wait(30)
            expect_code(outcome, 0)
            given_back = outcome.final["balloon"]
            expect(given_back["removed-pages"] > 0 and given_back["zero-faults"] > 0, f"it was heard: {given_back}")


def vanish(rig):
    """A client that ends while pages are missing is no error."""
    for order in ("none", "linear"):
        tool = rig.listening(*rig.sources["plain"], "--prefetch", order)
        expect_right(rig.client("vanish"), "a few pages")
        expect_code(tool.wait(30), 0)


def refusals(rig):
    """A client that says something wrong, or nothing, is refused in a line and keeps what it has."""
    for behaviour, text in (
        ("silent", "sent 0 bytes and 0 descriptors within"),
        ("no-fd", "0 descriptors within"),
        ("two-fds", "sent 2 descriptors"),
        ("garbage", "no JSON array"),
        ("overlap", "inside region 0"),
        ("beyond", "bytes of memory that there are"),
    ):
        tool = rig.listening(*rig.sources["plain"])
        client = rig.client(behaviour)
        started = time.monotonic()
        expect_code(tool.wait(REFUSED_WITHIN_S), 3, text)
        print(f"     after {time.monotonic() - started:.1f} s")
        said, _ = client.communicate(timeout=30)
        expect(client.returncode == 0 and said == "unharmed\n", f"{behaviour}: the client says {said!r}")
    cut = rig.directory / "cut"
    shutil.copy(rig.plain, cut)
    with open(cut, "r+b") as file:
        file.truncate((PAGES - 1) * PAGE)
    tool = rig.listening("--memory-file", cut)
    rig.client("verify")
    expect_code(tool.wait(30), 3, "region 1: offset")
    with open(cut, "r+b") as file:
        file.truncate(PAGE + 1)
    expect_code(rig.tool("--memory-file", cut).wait(30), 3, "has 4097 bytes")
    expect_code(rig.tool("--memory-file", rig.directory / "none").wait(30), 3, "none")
    expect_code(rig.tool("--page-file", rig.plain).wait(30), 3, str(rig.plain))
    for options in ((), ("--memory-file", rig.plain, "--page-file", rig.page_file),
                    ("--memory-file", rig.plain, "--store", rig.directory),
                    ("--memory-file", rig.plain, "--placement", "direct")):
        wrong = rig.tool(*options).wait(30)
        expect(wrong.code == 2 and "usage" in wrong.stderr, f"usage: {wrong.stderr.strip()}")


def socket(rig):
    """A socket that is alive is not taken over, and the one behind it goes on; a dead one is replaced."""
    tool = rig.listening(*rig.sources["plain"])
    for _ in range(3):
        expect_code(rig.tool(*rig.sources["plain"]).wait(30), 3, "somebody listens on")
    expect_right(rig.client("verify"), "the first one serves")
    expect_code(tool.wait(30), 0)
    killed = rig.listening(*rig.sources["plain"])
    killed.process.kill()
    killed.process.wait()
    expect(rig.socket.exists(), "a killed tool leaves its socket")
    tool = rig.listening(*rig.sources["plain"])
    expect_right(rig.client("verify"), "the new one serves")
    expect_code(tool.wait(30), 0)


def page_unproved(rig):
    """A page whose checksum is wrong is named and never placed: exit 8, and its guest waits."""
    content = rig.plain.read_bytes()[1000 * PAGE : 1001 * PAGE]
    flip_bit(rig.page_file, rig.page_file.read_bytes().index(content) + 100)
    for order in ("none", "linear"):
        tool = rig.listening(*rig.sources["page file"], "--prefetch", order)
        client = rig.client("verify")
        expect_code(tool.wait(60), 8, "page 1000 (")
        expect(client.poll() is None, "the client waits")
        client.kill()
        said, _ = client.communicate(timeout=30)
        expect(said == "", f"it has not seen a wrong page: {said!r}")


def page_unread(rig):
    """Reads that fail now and then are tried again; where they all fail the guest waits: exit 7."""
    again = rig.listening(*rig.sources["plain"], "--inject-store", "read:nth=3:eio,read:nth=4:eio,read:nth=9:eio")
    expect_right(rig.client("verify"), "three reads failed")
    expect_code(again.wait(30), 0)
    tool = rig.listening(*rig.sources["plain"], "--inject-store", "read:after=20:eio")
    client = rig.client("verify")
    expect_code(tool.wait(60), 7, "page")
    expect(client.poll() is None, "the client waits")
    client.kill()
    said, _ = client.communicate(timeout=30)
    expect(said == "", f"it has not seen a wrong page: {said!r}")


def stopped(rig):
    """SIGTERM ends it: 4 before there was a client, 7 while one needs its pages."""
    tool = rig.listening(*rig.sources["plain"])
    tool.process.send_signal(signal.SIGTERM)
    expect_code(tool.wait(30), 4, "stopped")
    expect(not rig.socket.exists(), "the socket is gone")
    tool = rig.listening(*rig.sources["plain"], "--prefetch", "none")
    client = rig.client("wait")
    expect(client.stdout.readline().startswith("verified"), "the client is served")
    tool.process.send_signal(signal.SIGTERM)
    expect_code(tool.wait(30), 7, "asked to stop")
    expect(client.poll() is None, "the client is alive")


def hugetlb(rig):
    """Regions of 2 MiB pages, with and without a balloon. Run by root, the test reserves the pages."""
    with huge_pages.reserved(PAGES * PAGE // huge_pages.BYTES):
        for name, source in rig.sources.items():
            for behaviour in ("verify", "balloon"):
                tool = rig.listening(*source, "--prefetch", "linear")
                client = rig.client(behaviour, huge_pages.BYTES)
                expect_right(client, f"{name}, {behaviour}")
                expect_code(tool.wait(30), 0)


CASES = {
    "verify": verify,
    "close-early": close_early,
    "balloon": balloon,
    "vanish": vanish,
    "refusals": refusals,
    "socket": socket,
    "page-unproved": page_unproved,
    "page-unread": page_unread,
    "stopped": stopped,
    "hugetlb": hugetlb,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--client", required=True)
    parser.add_argument("--maker", required=True)
    parser.add_argument("case", nargs="+", choices=sorted(CASES), metavar="CASE")
    arguments = parser.parse_args()
    for name in arguments.case:
        started = time.monotonic()
        print(f"--- {name}: {CASES[name].__doc__}", flush=True)
        with Rig(arguments.client, arguments.maker) as rig:
            CASES[name](rig)
        print(f"--- {name}: {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
