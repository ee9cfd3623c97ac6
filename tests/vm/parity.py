"""The parity lane: the scenarios of tests/parity under systemd, which a container is booted with."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.vm import systemd
from tests.vm.nspawn import Container

SCENARIOS = Path(__file__).parents[1] / "parity"


def run(where: Path, wheel: Path, folder: Path, arguments: Sequence[str], seconds: float) -> int:
    """Run the scenarios that are named, or the chosen ones (OSMODA_TEST_PARITY): the exit status."""
    where.mkdir(parents=True, exist_ok=True)
    with systemd.root_in_use(where, wheel) as root:
        container = Container(root, systemd.TARGET, folder)
        tests = root / "checks/tests"
        shutil.rmtree(tests, ignore_errors=True)
        tests.mkdir(parents=True)
        (tests / "__init__.py").touch()
        shutil.copytree(SCENARIOS, tests / "parity", ignore=shutil.ignore_patterns("__pycache__"))
        which = f"OSMODA_TEST_PARITY={os.environ.get('OSMODA_TEST_PARITY', '')}"
        command = shlex.join(["env", which, "/opt/osmoda/bin/python3", "-m", "tests.parity", *arguments])
        systemd.to_do(root, f"cd /checks && {command}", container.word, "/shared/answers")
        return container.run(seconds)
