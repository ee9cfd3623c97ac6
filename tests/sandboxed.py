"""A sandbox on the tests' internet: what runs in it, what it saw, and what the gateway noted about it.

def test_it(sandboxed, web):
    visit = sandboxed.visit({"do": "tls", "host": "www.example.test"}, allow=["www.example.test"])
    assert visit.answers[0]["end"] == "agreed"
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.internet import OnlineWorld, read_lines

VISITOR = Path(__file__).with_name("visitor.py")
PYTHON = "/usr/bin/python3"  # in view in every sandbox
Step = dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """How a run ended. `report` is what `--json` says, `records` are the gateway's about this sandbox."""

    status: int
    output: str
    errors: str
    report: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    answers: Sequence[Step] = ()

    @property
    def denied(self) -> list[Mapping[str, Any]]:
        return [record for record in self.records if record["verdict"] == "deny"]

    def of(self, name: str) -> list[Mapping[str, Any]]:
        return [record for record in self.records if record.get("name") == name]

    def reasons(self) -> list[str]:
        """Why something was denied, each once."""
        return sorted({record["reason"] for record in self.denied})


@dataclass(frozen=True)
class Sandboxed:
    """Starts sandboxes of one tier in a world, each with `work` as its workspace."""

    world: OnlineWorld
    work: Path
    tier: int = 2
    filesystem: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def at(self, tier: int) -> Sandboxed:
        return replace(self, tier=tier)

    def profile(self, network: str, name: str = "agent") -> Path:
        path = self.world.tmp / f"{name}.toml"
        filesystem = f'[filesystem]\nworkspace = "direct"\n{self.filesystem}'
        path.write_text(f"schema = 1\ntier = {self.tier}\n{filesystem}\n[network]\n{network}\n")
        self.world.own(path)
        return path

    def argv(
        self,
        *command: str,
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        network: str | None = None,
        options: Sequence[str] = (),
    ) -> list[str]:
        """The whole command. The rules come as options, or in a profile with `network` as its table."""
        words = ["run", "--json", "--profile", str(self.profile(network or "")), "--workspace", str(self.work)]
        for option, values in (("--allow", allow), ("--deny", deny)):
            for value in values:
                words += [option, value]
        for name, value in self.environment.items():
            words += ["--env", f"{name}={value}"]
        return self.world.osmoda_argv(*words, *options, "--", *command)

    def run(self, *command: str, env: Mapping[str, str] | None = None, timeout: float = 120, **rules: Any) -> Ended:
        """Run it to its end."""
        done = self.world.run(self.argv(*command, **rules), env=env, timeout=timeout)
        return self.ended(done.returncode, done.stdout, done.stderr)

    def ended(self, status: int, output: str, errors: str) -> Ended:
        errors, _, last = errors.rstrip().rpartition("\n")
        assert last.startswith("{"), f"the sandbox did not start: {errors}\n{last}"
        report = json.loads(last)
        return Ended(status, output, errors, report, self.records(report["sandbox"]))

    def visit(self, *steps: Step, workers: int = 1, **more: Any) -> Ended:
        """Take the steps of `visitor.py` inside."""
        done = self.run(*visitor(steps, workers), **more)
        assert done.status == 0, done.errors
        return replace(done, answers=json.loads(done.output))

    def outside(self, *steps: Step, workers: int = 1) -> list[Step]:
        """The positive control: the same steps without a sandbox."""
        answers: list[Step] = json.loads(self.world.run(visitor(steps, workers), check=True).stdout)
        return answers

    def all_records(self) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        for path in sorted(self.world.tmp.rglob("connections.jsonl*"), reverse=True):
            found += read_lines(path)
        return found

    def records(self, identity: str) -> list[Mapping[str, Any]]:
        return [record for record in self.all_records() if record.get("sandbox") == identity]


def visitor(steps: Sequence[Step], workers: int = 1) -> list[str]:
    return [PYTHON, "-I", "-c", VISITOR.read_text(), str(workers), json.dumps(steps)]


@pytest.fixture
def sandboxed(online: OnlineWorld) -> Sandboxed:
    """Sandboxes of tier 2."""
    work = online.tmp / "work"
    work.mkdir()
    online.own(work)
    return Sandboxed(online, work)
