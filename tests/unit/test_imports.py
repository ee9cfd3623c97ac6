"""The tables of docs/architecture.md: they name every module, and hot modules load nothing that costs time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import osmoda.egress
import osmoda.host
import osmoda.ledger
import osmoda.sandbox
import osmoda.supervisor
from tests.worlds import REPOSITORY, World

TEXT = (REPOSITORY / "docs" / "architecture.md").read_text()
ROW = r"^\| `((?:host|ledger|egress|sandbox|supervisor)/[\w/]+)` \| (yes)? ?\| (.+) \|$"
ROWS = re.findall(ROW, TEXT, re.MULTILINE)
HOT = [name for name, hot, _ in ROWS if hot]
ROOMS = {"host": osmoda.host, "ledger": osmoda.ledger, "egress": osmoda.egress, "sandbox": osmoda.sandbox}
ROOMS |= {"supervisor": osmoda.supervisor}

# What a hot module may load besides others: modules of C that are built in on some interpreters and files on others.
OF_C = {"_ctypes", "_heapq", "_sha2", "_socket", "fcntl", "select", "termios"}
# What the page says they never load.
NEVER = {*re.findall(r"`(\w+)`", TEXT.partition("and each other. No")[2].partition("Hot modules")[0])}
# -I -S: as the command itself is started.
ISOLATED = [sys.executable, "-I", "-S"]
LOADED = """
import sys
before = set(sys.modules)
sys.path.append(sys.argv[1])
for name in sys.argv[2:]:
    __import__(name)
print(*sorted(set(sys.modules) - before))
"""


def module(name):
    return "osmoda." + name.removesuffix("/__init__").replace("/", ".")


def installed():
    """The folder that holds `osmoda`."""
    (here,) = osmoda.sandbox.__path__
    return os.path.dirname(os.path.dirname(here))


def loaded(*names):
    """The modules that importing `names` loads in a fresh interpreter."""
    command = [*ISOLATED, "-c", LOADED, installed(), *names]
    return {*subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout.split()}


def allowed():
    hot = {module(name) for name in HOT}
    packages = {"osmoda", *[f"osmoda.{room}" for room in ROOMS], "osmoda.sandbox.operations"}
    return hot | packages | OF_C | {*sys.builtin_module_names, "__future__"}


# The tables


def test_every_module_is_named_once():
    files = {
        os.path.relpath(path, REPOSITORY).removesuffix(".py")
        for room in ROOMS
        for path in (REPOSITORY / room).rglob("*.py")
    } - {"host/__init__", "ledger/__init__"}
    named = [name for name, _, _ in ROWS if name.startswith(tuple(f"{room}/" for room in ROOMS))]
    assert sorted(named) == sorted(files)


def test_every_row_of_the_tables_is_read():
    section = TEXT[TEXT.index("## Hot and cold") : TEXT.index("## Errors")]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert len(rows) == len(ROWS) > 50


# Hot modules


@pytest.mark.parametrize("name", HOT)
def test_a_hot_module_loads_only_hot_ones(name):
    found = loaded(module(name))
    assert module(name) in found
    assert found & NEVER == set()
    assert found - allowed() == set()


def test_the_launch_loads_only_hot_modules():
    found = loaded("osmoda.sandbox.entry", "osmoda.sandbox.foreground", "osmoda.sandbox.monitor")
    assert found - allowed() == set()
    assert "osmoda.sandbox.compile" not in found


def test_what_would_be_noticed():
    """The measure itself: a cold module does load what hot ones must not."""
    assert {"os", "typing", "dataclasses"} <= loaded("osmoda.sandbox.profile") & NEVER
    assert len(NEVER) > 10


def test_a_whole_run_from_a_kept_plan_loads_only_hot_modules(world: World):
    """Also what is imported on the way, within functions."""
    script = Path(sys.executable).with_name("osmoda-sandbox")
    if not script.exists():
        script = REPOSITORY / "packaging" / "osmoda-sandbox"
    command = [*ISOLATED, "-X", "importtime", str(script), "run", "--tier", "2", "--", "true"]
    world.run(command, check=True)
    lines = world.run(command, check=True).stderr.splitlines()
    imported = [line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")]
    # All that is there before the first line of the script is Python's own.
    ours = imported[imported.index("osmoda.sandbox") :]
    assert {"osmoda.sandbox.foreground", "osmoda.sandbox.monitor", "osmoda.sandbox.init"} <= {*ours}
    assert {*ours} - allowed() == set()
