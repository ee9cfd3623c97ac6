"""SIGKILL for the process that switches, before each thing that it does, and at random moments.

Agents, files and processes are real. After each kill another process takes up what is on disk: then one generation is
current, one process of it runs, and record, ledger and data say the same.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.switch_scene import Scene, Trials, points

KILLS = int(os.environ.get("OSMODA_SWITCH_KILLS", "12"))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    found = Scene(tmp_path)
    found.first()
    return found


def is_true(scene: Scene, outcome: dict[str, Any]) -> None:
    """What record, link, processes, data and ledger say, is one story."""
    phase = outcome["phase"]
    expected = outcome["after"] if phase in ("committed", "probation") else outcome["before"]
    if phase:
        assert phase in ("committed", "probation", "rolled-back"), outcome
        assert outcome["current"] == expected, outcome
    running = {generation for _, generation in outcome["running"]}
    assert running == {str(outcome["current"])}, outcome
    assert len(outcome["running"]) == 1, f"two copies: {outcome}"
    assert outcome["untold"] == 0, outcome
    story: dict[int, str] = {}
    for entry in scene.entries():
        if entry["switch"] == outcome["number"]:
            assert story.setdefault(entry["step"], entry["phase"]) == entry["phase"], "one step, told in two ways"
    if phase:
        assert story[max(story)] == phase, (story, outcome)
        assert [*story] == [*range(len(story))]
    left = [path.name for path in scene.top.rglob("*") if path.name.endswith((".new", ".partial", ".spare.new"))]
    assert left == []


@pytest.mark.orphans
@pytest.mark.parametrize(
    ("then", "snapshot", "least"), [("commit", False, 12), ("back", True, 20), ("fails", False, 15)]
)
def test_killed_before_each_command(scene: Scene, then: str, snapshot: bool, least: int) -> None:
    with Trials(scene) as trials:
        for point in points():
            if then == "back" or point >= 7:  # up to there all three are the same
                current = scene.store().current("research")
                assert current is not None
                code = scene.store().numbers("research")[-1] + 1
                scene.make(code, *([then] if then == "fails" else []))
                what = {"do": "switch", "code": code, "then": then, "snapshot": snapshot, "kill_at": point}
                killed = trials.run(what)
                if not killed["killed"]:
                    is_true(scene, killed)
                    assert point >= least
                    return
                outcome = trials.run({"do": "recover"})
                is_true(scene, outcome)
                if outcome["phase"] == "rolled-back" and snapshot:
                    assert outcome["data"] == f"of {current}"
                if outcome["phase"] == "probation":
                    is_true(scene, trials.run({"do": "go back"}))


@pytest.mark.orphans
def test_killed_at_random_moments(scene: Scene) -> None:
    """`OSMODA_SWITCH_KILLS=1000` makes it a run of minutes."""
    chance = random.Random(os.environ.get("OSMODA_SWITCH_SEED", "osmoda"))
    phases: dict[str, int] = {}
    with Trials(scene) as trials:
        for number in range(KILLS):
            what = {"do": "many", "seed": number, "kill_after": 0.12 + chance.random() * 0.5}
            assert trials.run(what)["killed"]
            outcome = trials.run({"do": "recover"})
            is_true(scene, outcome)
            phases[outcome["phase"]] = phases.get(outcome["phase"], 0) + 1
    print(phases)
    assert sum(phases.values()) == KILLS
