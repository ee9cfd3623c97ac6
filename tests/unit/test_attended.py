"""What pid 1 of a supervised sandbox does without a pid namespace, and what a service manager is told.

Everything else of it is in test_services.py, with real sandboxes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from osmoda.sandbox import attended, service_foreground

DEADLINE = 30.0
# A subreaper with a child, a grandchild in a session of its own, an orphan, and a child of another thread.
TREE = """
import ctypes, os, subprocess, sys, threading
from osmoda.sandbox import attended
ctypes.CDLL(None).prctl(36, 1)
sleep = ["sleep", "1000"]
plain = subprocess.Popen(sleep)
orphans = subprocess.Popen(["sh", "-c", "setsid sleep 1000 & setsid sleep 1000 & exit 0"])
orphans.wait()
nested = subprocess.Popen(["sh", "-c", "setsid sleep 1000; exit 0"])
threaded = []
started, over = threading.Event(), threading.Event()
def thread():
    threaded.append(subprocess.Popen(sleep))
    started.set()
    over.wait()
worker = threading.Thread(target=thread)
worker.start()
started.wait()
while len(attended._descendants(os.getpid())) < 6:
    pass
print(len(attended._descendants(os.getpid())), flush=True)
attended.signal_all(int(sys.argv[1]))
ended = set()
try:
    while True:
        pid, status = os.wait()
        ended.add(os.waitstatus_to_exitcode(status))
except ChildProcessError:
    print(sorted(ended), flush=True)
over.set()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_all_descendants_of_a_subreaper_are_signalled(number: int) -> None:
    beside = subprocess.Popen(["sleep", "1000"])
    try:
        done = subprocess.run(
            [sys.executable, "-c", TREE, str(int(number))], capture_output=True, text=True, check=True, timeout=DEADLINE
        )
        assert done.stdout.splitlines() == ["6", str([-number])]
        assert beside.poll() is None
    finally:
        beside.kill()
        beside.wait()


def test_a_number_that_is_another_processes_by_now() -> None:
    """Who is no child of whom the list has named is left alone."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        attended._signal_child(process.pid, 1, signal.SIGKILL)  # its parent is this process: it is signalled
        assert process.wait(DEADLINE) == -signal.SIGKILL
    with subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        pid = int(shell.stdout.readline())
        attended._signal_child(pid, 1, signal.SIGKILL)
        assert os.path.exists(f"/proc/{pid}")
        attended._signal_child(pid, shell.pid, signal.SIGKILL)
        deadline = time.monotonic() + DEADLINE
        while shell.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert shell.poll() == 0
    attended._signal_child(pid, shell.pid, signal.SIGKILL)  # it has ended


@pytest.mark.parametrize(
    ("message", "passed"),
    [
        (b"READY=1", b"READY=1"),
        (b"READY=1\nSTATUS=it works\nMAINPID=7\n", b"READY=1\nSTATUS=it works"),
        (b"MAINPIDFDID=7\nFDSTORE=1\nFDNAME=x\nFDPOLL=0\nNOTIFYACCESS=all\nBARRIER=1", b""),
        (b"WATCHDOG=1\nWATCHDOG_USEC=5\nEXTEND_TIMEOUT_USEC=9", b"WATCHDOG=1\nWATCHDOG_USEC=5\nEXTEND_TIMEOUT_USEC=9"),
        (b"X_MINE=1\nready=1\n\xff\xfe=1\n=\nSTOPPING=1", b"STOPPING=1"),
        (b"", b""),
    ],
)
def test_what_is_passed_on_to_a_service_manager(message: bytes, passed: bytes) -> None:
    assert service_foreground.passed_on(message) == passed
