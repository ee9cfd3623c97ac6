"""The battery in one tool after the other, as whoever calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from osmoda.sandbox.battery import Answer, answers
from osmoda.sandbox.battery.__main__ import order
from osmoda.sandbox.verification import examine, rounds
from osmoda.sandbox.verification.scene import Scene
from tests.attacks.peers import page
from tests.attacks.peers.set_ups import PROCESSES, SetUp, all_set_ups, program
from tests.worlds import REPOSITORY

SECONDS = 60.0
# What only tells whether osmoda's own layers are there, and is no harm in itself: another tool may do without them.
_OURS = ("without-landlock", "unfiltered", "switch-own-name", "switch-own-oom")
_LAST = ("stay", "overwrite-program")  # spoil what others attack


def attack_all(peers: str, work: str, kit: str) -> list[page.Column]:
    """In the ordinary user's world: the control, then every tool."""
    names = [*(name for name in examine.attack_names() if name not in (*_LAST, *_OURS)), "processes", *_LAST]
    tasks = [(name, (PROCESSES + 24,) if name == "processes" else ()) for name in names]
    columns = []
    with Scene() as scene, scene.open_folder() as left_open:
        environment = scene.environment()
        outside = {
            privileged: rounds.outside(privileged=privileged, environment=environment, left_open=left_open)
            for privileged in (False, True)
        }
        for number, set_up in enumerate(all_set_ups(Path(peers), Path(work))):
            facts = scene.facts(inside=True, number=number)
            if not set_up.own_pids:
                facts["init"] = 0  # whoever launched it, since there is no pid 1 of its own
            if set_up.name in ("srt", "sandlock"):
                facts["scratch"] = str(Path(work) / set_up.name)
            mine = [task for task in tasks if set_up.own_pids or task[0] != "overwrite-program"]
            argv = set_up.command(program(Path(kit), order(mine, facts)))
            print(f"attacking in {set_up.name} {set_up.version}", flush=True)
            found, errors = run(argv, environment, left_open)
            by_name = {mine[index][0]: answer for index, answer in found.items() if index < len(mine)}
            stays = not examine.ended(scene.daemon(inside=True, number=number))
            columns.append(
                page.Column(set_up.name, set_up.version, shown(set_up, work, peers, kit), by_name, stays, errors)
            )
        # Last, since it spoils the scene.
        control = examine.control(outside, tasks, scene)
    columns.append(
        page.Column("outside", "", "", {task[0]: control[i] for i, task in enumerate(tasks) if i in control}, True, "")
    )
    return columns


def shown(set_up: SetUp, work: str, peers: str, kit: str) -> str:
    """The command line without this machine's own paths."""
    text = set_up.shown()
    for path, word in ((work, "WORK"), (peers, "PEERS"), (kit, "KIT"), (str(Path(sys.executable).parent), "BIN")):
        text = text.replace(path, word)
    return text.replace(str(REPOSITORY), ".")


def run(argv: list[str], environment: dict[str, str], left_open: int) -> tuple[dict[int, Answer], str]:
    """The answers, and the end of what the tool said besides, where there are none."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            pass_fds=(left_open,),
            start_new_session=True,
            timeout=SECONDS,
            check=False,
            cwd="/",
        )
    except subprocess.TimeoutExpired as late:
        return answers(late.stdout or b""), f"it did not end within {SECONDS:g} s"
    found = answers(done.stdout)
    said = (done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"])[-1]
    return found, "" if found else said
