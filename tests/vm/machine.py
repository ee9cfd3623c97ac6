"""One virtual machine: started, watched and ended. Whatever becomes of it, an exit status comes back.

A machine answers over its second serial line (ttyS1): what its program prints, then a line with a word that only this
run knows, and the program's status. Without that line the status is 124, since a machine that died, hung or was cut off
has passed nothing. When it has come, or the time is up, all of the machine's processes are ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

NO_STATUS = 124  # as timeout(1) has it
LAST_BYTES = 4000  # of the console, shown when there is no status
# What costs an emulated processor most and decides nothing that is tested: mitigations of processor bugs, memory wiped
# before it is handed out, auditing.
FASTER = ("mitigations=off", "nokaslr", "init_on_alloc=0", "audit=0", "nowatchdog")
# Time is the HPET's, which qemu derives from the host's. Of the TSC the kernel measures the rate as it boots: wrongly
# by a factor when the host has other work at that moment, and then all time inside runs too fast or too slow.
TIME = ("clocksource=hpet", "tsc=unstable")
KERNEL_OPTIONS = (*FASTER, *TIME, "panic=-1")  # a kernel that panics ends the machine


@dataclass(frozen=True)
class Machine:
    """What to boot: an image, and more options of vng's, the kernel's and qemu's. `folder` is for this run's files."""

    kernel: Path
    folder: Path
    options: Sequence[str] = ()
    kernel_options: Sequence[str] = ()
    devices: Sequence[str] = ()
    word: str = field(default_factory=lambda: secrets.token_hex(8))

    def running(self, program: str) -> Machine:
        """The same machine with a shell command as its first program."""
        return replace(self, options=(*self.options, "--exec", program))

    @property
    def console(self) -> Path:
        return self.folder / "console.log"

    def command(self) -> list[str]:
        vng = str(Path(sys.executable).with_name("vng"))
        emulated = ["--disable-kvm", "--disable-microvm", "--force-9p", "--cpus", "1", "--user", "root", "--verbose"]
        appended = [word for option in (*KERNEL_OPTIONS, *self.kernel_options) for word in ("--append", option)]
        devices = ["-serial", f"file:{self.folder}/answers", *self.devices]
        qemu = [f"--qemu-opts={word}" for word in devices]
        return [vng, "--run", str(self.kernel), *emulated, *appended, *self.options, *qemu]

    def run(self, seconds: float) -> int:
        """Boot it, print what its program prints, and give the program's status, or 124."""
        began = time.monotonic()
        answers = Answers(self.folder / "answers", self.word, began)
        with self._started() as output, self.console.open("wb") as console:
            while answers.status is None and (left := began + seconds - time.monotonic()) > 0:
                said = b""
                if ready := select.select([output], [], [], min(left, 0.25))[0]:
                    said = os.read(output, 1 << 16)
                    console.write(said)
                answers.read()
                if ready and not said:
                    break  # nothing of it runs any more
        took = time.monotonic() - began
        if answers.status is None:
            what = "gave no status within" if took >= seconds else "ended without a status after"
            print(f"vm: the machine {what} {took:.0f} s; the last of its console:", flush=True)
            print(self.console.read_bytes()[-LAST_BYTES:].decode(errors="replace"), flush=True)
            return NO_STATUS
        print(f"» status {answers.status} after {took:.0f} s", flush=True)
        return answers.status

    @contextlib.contextmanager
    def _started(self) -> Iterator[int]:
        """Its processes, for the block: the pipe that they all hold, and print to."""
        environment = {
            **os.environ,
            # vng calls its companions by name, and keeps files of its own.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"]),
            **dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(self.folder)),
        }
        process = subprocess.Popen(
            self.command(),
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            yield process.stdout.fileno()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            drain(process.stdout)


def drain(output: BinaryIO, seconds: float = 10) -> None:
    """Wait for the end of the pipe: then every process that held it is gone."""
    end = time.monotonic() + seconds
    with output:
        while select.select([output], [], [], max(0, end - time.monotonic()))[0]:
            if not os.read(output.fileno(), 1 << 16):
                return
    raise RuntimeError("processes of the machine are left: they do not end")


@dataclass
class Answers:
    """What comes over the serial line, printed as it comes with the seconds since the start."""

    path: Path
    word: str
    began: float
    status: int | None = None
    _taken: int = 0
    _rest: bytes = b""

    def read(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._taken)
            new = file.read()
        self._taken += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for raw in lines:
            line = raw.decode(errors="replace").rstrip("\r")
            if last := re.fullmatch(rf"{self.word} (\d{{1,3}})", line):
                self.status = int(last[1])
            else:
                print(f"{time.monotonic() - self.began:5.0f} s  {line}", flush=True)
