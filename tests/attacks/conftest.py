"""What an attack has: a program that attacks (`attack.c`), a harness outside, and a real sandbox at tiers 1 and 2."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.worlds import World

SOURCE = Path(__file__).with_name("attack.c")


@pytest.fixture(scope="session")
def attack_program() -> Iterator[Path]:
    """The compiled program; static, so that it needs nothing of where it runs."""
    with tempfile.TemporaryDirectory(prefix="osmoda-attack-") as folder:
        os.chmod(folder, 0o755)
        program = Path(folder, "attack")
        command = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o", program, SOURCE]
        subprocess.run(command, check=True)
        yield program


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit status, what it printed, and inside a sandbox the report of `--json`."""

    status: int
    output: str
    errors: str
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        return self.output.strip()

    def refused(self, layer: str = "seccomp") -> set[str]:
        """The operations that `layer` reported as refused."""
        return {denial["operation"] for denial in self.report["denials"] if denial["layer"] == layer}

    def each(self) -> dict[str, str]:
        """Of several attacks in one run: how each went."""
        return dict(line.split(" ", 1) for line in self.output.splitlines())


@dataclass(frozen=True)
class Attacker:
    """The attacks of one world on one tier. `folder` is granted for reading and holds the program."""

    world: World
    tier: int
    folder: Path

    @property
    def program(self) -> str:
        return str(self.folder / "attack")

    def outside(self, *arguments: str, privileged: bool = False, **options: Any) -> Ended:
        """The positive control: the attack in the world itself, or with all the rights that the test run has."""
        command = [self.program, *arguments]
        if privileged:
            options.setdefault("stdin", subprocess.DEVNULL)
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)
        else:
            done = self.world.run(command, **options)
        return Ended(done.returncode, done.stdout, done.stderr)

    def profile(self, text: str, **values: object) -> str:
        """A profile file of this tier; `text` may use {folder}."""
        path = self.world.tmp / "attack.toml"
        path.write_text(f"schema = 1\ntier = {self.tier}\n" + text.format(folder=self.folder, **values))
        return str(path)

    def argv(self, *command: str, options: Sequence[str] = ()) -> list[str]:
        """The arguments of `osmoda-sandbox` for `command` inside; the attacks' folder is granted."""
        tier = [] if "--profile" in options else ["--tier", str(self.tier)]
        return ["run", *tier, "--json", "--read", str(self.folder), *options, "--", *command]

    def run(self, *command: str, options: Sequence[str] = (), **more: Any) -> Ended:
        """Run any command inside."""
        done = self.world.osmoda(*self.argv(*command, options=options), **more)
        last = done.stderr.rstrip().rpartition("\n")[2]
        report = json.loads(last) if last.startswith("{") else {}
        return Ended(done.returncode, done.stdout, done.stderr, report)

    def inside(self, *arguments: str, options: Sequence[str] = (), **more: Any) -> Ended:
        """The attack, inside. A set-up that failed is no defence."""
        ended = self.run(self.program, *arguments, options=options, **more)
        assert ended.report, f"the sandbox did not start: {ended.errors}"
        return ended

    def script(self, attacks: Mapping[str, Sequence[str]]) -> list[str]:
        """A command that makes several attacks, each answered on a line of its own behind its name."""
        lines = [
            f"printf '%s ' {shlex.quote(name)}; {shlex.join([self.program, *attack])} || :"
            for name, attack in attacks.items()
        ]
        return ["sh", "-c", "\n".join(lines)]

    def all_inside(self, attacks: Mapping[str, Sequence[str]], options: Sequence[str] = ()) -> Ended:
        """Several attacks in one sandbox."""
        ended = self.run(*self.script(attacks), options=options)
        assert ended.report, f"the sandbox did not start: {ended.errors}"
        return ended

    def all_outside(self, attacks: Mapping[str, Sequence[str]], *, privileged: bool = False) -> dict[str, str]:
        """Several attacks outside."""
        command = self.script(attacks)
        if privileged:
            done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
        else:
            done = self.world.run(command, check=True)
        return Ended(0, done.stdout, done.stderr).each()


@pytest.fixture(params=[1, 2], ids=["tier1", "tier2"])
def tier(request: pytest.FixtureRequest) -> int:
    """Both tiers that promise anything."""
    number: int = request.param
    return number


@pytest.fixture
def attacker(world: World, tier: int, attack_program: Path) -> Attacker:
    """An attacker of the world, against a sandbox of the tier."""
    # Where tier 2 may read: tool chains in the caller's home.
    folder = world.home / ".pyenv" / "versions" / "attack"
    folder.mkdir(parents=True)
    shutil.copy(attack_program, folder / "attack")
    world.own(world.home)
    return Attacker(world, tier, folder)


as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs to be root: the attack's control needs all rights")
