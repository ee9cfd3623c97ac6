"""One agent more than fits: refused by a daemon, let in by force, and again when another one has left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from osmoda.supervisor.capacity import host_room, plans_file
from tests.watched import Watch

SLEEPER = "import time\ntime.sleep(1000)\n"


@pytest.fixture
def crowded(watch: Watch) -> Watch:
    """A host on which two agents have room: each counts as two fifths of the memory."""
    plans = Path(plans_file.SHIPPED, "plans.toml").read_text()
    values = {
        '"1G"': str(host_room.room().memory * 2 // 5),
        '"768M"': "0",
        "cpu = 0.1": "cpu = 0",
        '"8G"\n\n#': "0\n\n#",
    }
    values['disk = "2G"'] = "disk = 0"
    text = plans
    for old, new in values.items():
        assert old in text
        text = text.replace(old, new)
    environment = watch.world.environment
    folder = environment.get("OSMODA_CONFIG_DIR") or f"{environment['XDG_CONFIG_HOME']}/osmoda"
    Path(folder).mkdir(exist_ok=True)
    (Path(folder) / "plans.toml").write_text(text)
    watch.world.own(Path(folder))
    for name in ("one", "two", "three"):
        watch.unit(name, ExecStart=watch.program(name, SLEEPER))
    watch.up()
    return watch


def test_one_more_than_fits(crowded: Watch) -> None:
    crowded.do("start", "one", "two")
    found = json.loads(crowded.do("capacity", "--json"))
    assert ([one["name"] for one in found["agents"]], found["more"]) == (["one.service", "two.service"], 0)
    refused = crowded.run("start", "three")
    assert refused.returncode == 1
    assert "three.service does not fit: it needs " in refused.stderr
    assert "for 2 agents); `osmoda-watch start --force three.service` starts it" in refused.stderr
    assert any("does not fit" in line for line in crowded.lines("three"))
    # Whoever is in stays in, restarted or not.
    crowded.do("restart", "one")
    crowded.do("start", "--force", "three")
    assert crowded.status("three")["state"] == "active"
    crowded.do("stop", "one", "two")
    crowded.do("start", "two")
    text = crowded.do("capacity")
    assert "two.service" in text
    assert "one.service" not in text
    assert "0 more agents fit" in text


def test_what_failed_to_start_takes_no_room(crowded: Watch) -> None:
    crowded.unit("broken", ExecStart="/nowhere/program")
    for _ in range(3):
        assert crowded.run("start", "broken").returncode == 1
    crowded.do("start", "one", "two")
