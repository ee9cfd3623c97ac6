"""CPython's own tests, inside tier 1 and outside: every difference is one that the policy explains.

Inside they run twice, in a sandbox that root started and in one that an ordinary user started (the long ones only
once); outside as that user.
`cpython_differences.toml` lists what comes out differently and why.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.worlds import World, make_world

MODULES = (
    "test_asyncio",  # the longest first
    "test_multiprocessing_fork",
    "test_threading",
    "test_subprocess",
    "test_socket",
    "test_os",
    "test_tempfile",
)
LONG = MODULES[:3]
RUNNER = Path(__file__).with_name("cpython_runner.py")
DIFFERENCES = tomllib.loads(Path(__file__).with_name("cpython_differences.toml").read_text())["difference"]
# The interpreter itself, not its virtual environment: its tests look for themselves beside it.
PYTHON = os.path.join(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
TESTS = Path(sys.base_prefix, "lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "test")
PROFILE = f"""
schema = 1
tier = 1
description = "CPython's tests"

[filesystem]
read = [{json.dumps(os.path.realpath(sys.base_prefix))}]
workspace = "direct"
tmp = "1G"
"""
AGAIN = (
    2  # times that a difference without a reason is tried once more: some of these tests depend on the machine's load
)

pytestmark = pytest.mark.skipif(
    not (TESTS / "test_os.py").exists(),
    reason=f"{TESTS} does not hold CPython's tests; Debian and Ubuntu have them in libpython3.x-testsuite",
)

type Outcomes = dict[str, list[str]]


class Runs:
    """The same module in three places: outside, and in sandboxes of root's and of a user's."""

    def __init__(self, worlds: Sequence[World]) -> None:
        self.worlds = tuple(worlds)
        self.outside = worlds[-1]
        for world in worlds:
            for name in ("inside", "outside"):
                (world.tmp / name).mkdir()
            (world.tmp / "profile.toml").write_text(PROFILE)
            shutil.copy(RUNNER, world.tmp / "inside")
            shutil.copy(RUNNER, world.tmp / "outside")
            world.own(world.tmp)

    def outcomes(self, module: str, only: Sequence[str] = ()) -> tuple[Outcomes, list[Outcomes]]:
        """What became of each test outside, and in each sandbox."""
        worlds = self.worlds[:1] if module in LONG else self.worlds
        with ThreadPoolExecutor() as threads:
            outside = threads.submit(self._run, self.outside, "outside", module, only)
            insides = [threads.submit(self._run, world, "inside", module, only) for world in worlds]
            return outside.result(), [inside.result() for inside in insides]

    @staticmethod
    def _run(world: World, place: str, module: str, only: Sequence[str]) -> Outcomes:
        folder = world.tmp / place
        answer = folder / f"{module}.json"
        argv = [PYTHON, "cpython_runner.py", module, str(answer), *only]
        if place == "inside":
            options = ["--quiet", "--profile", str(world.tmp / "profile.toml"), "--workspace", str(folder)]
            argv = world.osmoda_argv("run", *options, "--", *argv)
        done = world.run(argv, cwd=folder, timeout=240, stderr=subprocess.STDOUT)
        assert answer.exists(), done.stdout[-4000:]
        found: Outcomes = json.loads(answer.read_text())
        answer.unlink()
        return found


@pytest.fixture
def runs(no_leftovers: Path) -> Iterator[Runs]:
    names = ["root", "user"] if os.getuid() == 0 else ["user"]
    folders = [Path(tempfile.mkdtemp(prefix=f"osmoda-cpython-{name}-")) for name in names]
    try:
        yield Runs([make_world(name, tmp, no_leftovers / name) for name, tmp in zip(names, folders, strict=True)])
    finally:
        for folder in folders:
            shutil.rmtree(folder)


def unexplained(outside: Outcomes, inside: Outcomes) -> dict[str, str]:
    """The tests that came out differently, without those that the table gives a reason for."""
    found = {}
    for test in outside.keys() | inside.keys():
        before, _ = outside.get(test, ["absent", ""])
        after, why = inside.get(test, ["absent", ""])
        if before != after and not reasons(test, after):
            found[test] = f"{test}: {before} outside, {after} inside {why}"
    return found


def reasons(test: str, outcome: str) -> list[str]:
    name = test.removeprefix("test.")
    return [
        entry["reason"]
        for entry in DIFFERENCES
        if entry["inside"] == outcome and any(fnmatch.fnmatchcase(name, pattern) for pattern in entry["tests"])
    ]


@pytest.mark.orphans
@pytest.mark.parametrize("module", MODULES)
def test_cpythons_own_tests_come_out_as_outside(runs: Runs, module: str) -> None:
    outside, insides = runs.outcomes(module)
    passed = sum(outcome == "passed" for outcome, _ in insides[0].values())
    assert passed > len(outside) / 2, "most of these tests pass, inside as outside"
    for number, inside in enumerate(insides):
        left = unexplained(outside, inside)
        for _ in range(AGAIN):
            if not left:
                break
            again, all_inside = runs.outcomes(module, sorted(left))
            left = {test: line for test, line in left.items() if test in unexplained(again, all_inside[number])}
        assert not left, "\n".join(sorted(left.values()))


def test_every_reason_is_of_a_test_that_was_run() -> None:
    """The table stays honest: a pattern names a module that is run, and each entry has a reason of its own."""
    for entry in DIFFERENCES:
        assert entry["reason"], entry
        for pattern in entry["tests"]:
            assert pattern.split(".")[0] in MODULES, pattern
