"""The two units that agents are deployed with, as they stand: their files name /opt/agents, which the daemon here has
for itself in a mount namespace of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.watched import Watch, eventually, watching
from tests.worlds import World

UNITS = Path(__file__).parents[1] / "parity" / "seed_units"
MAIN = """
import os, sys, time
print(f"{os.getcwd()} with {os.environ['MODEL']}, {sys.prefix}", flush=True)
time.sleep(1000)
"""
# A private /opt, filled with what is given.
OWN_OPT = 'mount -t tmpfs none /opt && cp -a "$1/." /opt/ && shift && exec "$@"'


@pytest.fixture
def seeds(world: World) -> Iterator[Watch]:
    """A daemon with the seed units, up."""
    opt = world.tmp / "opt"
    for name in ("research", "writer"):
        folder = opt / "agents" / name
        folder.mkdir(parents=True)
        (folder / "main.py").write_text(MAIN)
        (folder / ".env").write_text(f'# of {name}\nMODEL="model of {name}"\n')
        subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    with watching(world) as watch:
        for unit in UNITS.iterdir():
            watch.file(unit.name, unit.read_text())
        watch.up("unshare", "--mount", "--propagation", "private", "sh", "-c", OWN_OPT, "sh", str(opt))
        yield watch


@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_the_seed_units_run_as_they_stand(seeds: Watch) -> None:
    names = ("research-agent", "writer-agent")
    seeds.do("start", *names)
    for name, folder in zip(names, ("research", "writer"), strict=True):
        line = seeds.wait_for_line(name, "with model of")
        assert line == f"/opt/agents/{folder} with model of {folder}, /opt/agents/{folder}/.venv"
        assert any("grant more" in text for text in seeds.lines(name))
    before = seeds.status("research-agent")
    assert (before["state"], before["tier"], before["restarts"]) == ("active", 1, 0)
    text = seeds.do("status", "research-agent")
    assert text.startswith("● research-agent.service - Research Agent\n")
    assert f"Loaded: from {seeds.units}/research-agent.service" in text
    listed = {one["unit"]: one for one in json.loads(seeds.do("list", "--json"))}
    assert {listed[f"{name}.service"]["state"] for name in names} == {"active"}

    os.kill(before["pid"], signal.SIGKILL)
    after = seeds.wait_for("research-agent", state="active", restarts=1)
    assert after["since"] - before["since"] >= 5.0  # RestartSec=5
    assert seeds.status("writer-agent")["restarts"] == 0
    assert "its program was ended by SIGKILL" in seeds.lines("research-agent")

    # Each sees its own folder, and neither the other's nor its own file of variables.
    for name, folder, other in (("research-agent", "research", "writer"), ("writer-agent", "writer", "research")):
        root = f"/proc/{seeds.status(name)['pid']}/root/opt/agents"
        assert os.path.exists(f"{root}/{folder}/main.py")
        assert not os.path.exists(f"{root}/{other}")
        assert not readable(Path(f"{root}/{folder}/.env"))
    seeds.do("stop", *names)
    eventually(lambda: not Path(f"/proc/{after['pid']}").exists(), "it was gone")


def readable(path: Path) -> str:
    """What an agent could read of a file; nothing where it is masked."""
    try:
        return path.read_text()
    except OSError:
        return ""
