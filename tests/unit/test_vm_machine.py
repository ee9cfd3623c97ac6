"""Virtual machines fail closed: only the status that a machine's own program gives counts. Scripts stand in for vng."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm.machine import NO_STATUS, Machine
from tests.worlds import Program

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Script(Machine):
    """A shell script in a machine's place: `$answers` is its serial line, `$word` the word of this run."""

    script: str = ""

    def command(self) -> list[str]:
        return ["sh", "-c", f"answers={self.folder}/answers word={self.word}\n{self.script}"]


def run(folder: Path, script: str, seconds: float = 30) -> int:
    return Script(Path("no-kernel"), folder, script=script).run(seconds)


@pytest.mark.parametrize("status", [0, 5])
def test_the_status_of_the_program_inside(tmp_path, capfd, status):
    assert run(tmp_path, f'printf "one\\r\\ntwo\\r\\n\\r\\n%s {status}\\r\\n" $word >>$answers; exit 3') == status
    lines = [line.partition(" s  ")[2] for line in capfd.readouterr().out.splitlines()]
    assert lines[:2] == ["one", "two"]


def test_a_machine_that_has_answered_is_not_waited_for(tmp_path):
    began = time.monotonic()
    assert run(tmp_path, "echo $word 0 >>$answers; exec sleep 1000") == 0
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo Kernel panic; exit 0", "ended without a status"),
        ("echo Kernel panic; echo 5 passed >>$answers; exit 0", "ended without a status"),
        ("echo Kernel panic; echo another-word 0 >>$answers; exit 0", "ended without a status"),
        ("echo Kernel panic; printf '%s 0' $word >>$answers; exit 0", "ended without a status"),
        ("echo Kernel panic; echo $word >>$answers; exit 0", "ended without a status"),
        ("echo Kernel panic; exit 1", "ended without a status"),
        ("echo Kernel panic; sleep 1000 & sleep 1000", "gave no status within"),
    ],
    ids=["no answer", "no word", "another word", "cut off in the last line", "no number", "vng fails", "it hangs"],
)
def test_without_a_status_it_has_failed(tmp_path, capfd, script, said):
    assert run(tmp_path, script, seconds=1.5) == NO_STATUS
    output = capfd.readouterr().out
    assert said in output
    assert "Kernel panic" in output, "the console tells why"


def test_a_machine_that_cannot_be_started_has_failed(tmp_path):
    lane = [sys.executable, "-m", "tests.vm", "--supplies", tmp_path, "kernel"]
    done = subprocess.run(lane, cwd=REPOSITORY, env={"PATH": "/nowhere"}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("vm: apt-get is not installed"), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".kernel.lock"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_of_its_processes(tmp_path, number):
    """The check after each test sees to it that none is left."""
    code = f"""
import sys
from pathlib import Path
from tests.unit.test_vm_machine import run
from tests.vm.__main__ import interruptible
interruptible()
sys.exit(run(Path({str(tmp_path)!r}), "echo up >>$answers; sleep 1000 & sleep 1000", 60))
"""
    with Program([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as lane:
        assert lane.stdout.readline().endswith("up\n")
        os.kill(lane.pid, number)
        assert lane.stdout.read() == ""
    assert lane.returncode == 128 + number
