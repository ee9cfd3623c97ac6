"""`osmoda-watch switch` with a real daemon: as a person uses it, and with the daemon killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.ledgers import events_of
from tests.watched import PYTHON, Watch, eventually
from tests.worlds import World

as_root = pytest.mark.parametrize("world", ["root"], indirect=True)  # the first test is the one for both
KILLS = max(int(os.environ.get("OSMODA_SWITCH_KILLS", "0")) // 10, 2)
AGENT = """\
import os, time
print("generation", {generation}, flush=True)
if {fails}:
    raise SystemExit(3)
time.sleep(1000)
"""


def build(watch: Watch, generation: int, *, fails: bool = False, sick: bool = False) -> Path:
    """New code, in a folder of its own."""
    folder = watch.world.tmp / "build" / str(generation)
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(AGENT.format(generation=generation, fails=fails))
    if not sick:
        (folder / "healthy").touch()
    watch.world.own(watch.world.tmp / "build")
    return folder


def agent(watch: Watch, **directives: str) -> Path:
    """An agent, installed and running from its folder; the folder."""
    folder = watch.folder("agent")
    (folder / "main.py").write_text(AGENT.format(generation=1, fails=False))
    (folder / "healthy").touch()
    watch.world.own(folder)
    watch.unit(
        "agent",
        ExecStart=f"{PYTHON} main.py",
        Restart="always",
        RestartSec="100ms",
        **directives,
        section=f"HealthCheck=exec:/usr/bin/test -e {folder}/healthy\nHealthInterval=200ms\nHealthRetries=2",
    )
    watch.up()
    watch.do("start", "agent")
    return folder


def switched(watch: Watch) -> dict[str, Any]:
    """How the agent's last switch stands."""
    (found,) = json.loads(watch.run("switch", "status", "agent", "--json").stdout)
    return dict(found)


def in_phase(watch: Watch, phase: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = switched(watch)
        return found if found["phase"] == phase else None

    return eventually(look, f"the switch was {phase}")


def folders(watch: Watch) -> list[str]:
    """The folders of code that agents work in; not the first processes of their sandboxes, which do, too."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                here = os.readlink(f"/proc/{entry}/cwd")
                words = Path(f"/proc/{entry}/cmdline").read_bytes()
                if here.startswith(str(watch.world.tmp)) and here.endswith("/code") and b"main.py" in words:
                    found.append(here)
    return found


def runs(watch: Watch, generation: int) -> None:
    """One process of the agent runs, of that generation."""

    def look() -> bool:
        found = folders(watch)
        return len(found) == 1 and found[0].endswith(f"/agents/agent/generations/{generation}/code")

    eventually(look, f"one process of generation {generation} ran: {folders(watch)}")


def test_from_one_generation_to_the_next_and_back(watch: Watch) -> None:
    folder = agent(watch)
    said = watch.do("switch", "begin", "agent", "--code", build(watch, 2), "--probation", "10min", "--note", "faster")
    assert said.startswith("agent: generation 2 is on probation for another ")
    assert said.endswith("; a failed check leads back to generation 1\n")
    assert folder.is_symlink()
    assert watch.status("agent")["health"] in ("starting", "healthy")
    watch.wait_for_line("agent", "generation 2")
    refused = watch.run("switch", "begin", "agent", "--code", watch.world.tmp / "build" / "2")
    assert refused.returncode != 0
    assert "agent is in switch 1, which is probation" in refused.stderr
    assert "agent: generation 2 is committed since" in watch.do("switch", "commit", "agent")
    runs(watch, 2)

    # One that is not healthy goes back by itself.
    result = watch.run("switch", "begin", "agent", "--code", build(watch, 3, sick=True), "--wait")
    assert result.returncode == 1
    assert result.stdout.startswith("agent: rolled back to generation 2 since ")
    assert "agent is not healthy: command" in result.stdout or "not become healthy" in result.stdout
    runs(watch, 2)

    # So does one that ends again and again.
    result = watch.run("switch", "begin", "agent", "--code", build(watch, 4, fails=True), "--wait")
    assert result.returncode == 1
    assert "rolled back to generation 2" in result.stdout
    runs(watch, 2)

    # And by hand, to one that was committed before.
    assert "generation 1 is on probation" in watch.do("switch", "rollback", "agent", "--probation", "1h")
    runs(watch, 1)
    assert "agent: rolled back to generation 2 since" in watch.do("switch", "rollback", "agent")
    runs(watch, 2)

    listed = watch.do("switch", "list", "agent").splitlines()
    assert listed[0].split() == ["agent", "generation", "made", "size", "verdict", "note"]
    assert [line.split()[1] for line in listed[1:]] == ["1", "2", "3", "4"]
    assert "2 *" in listed[2]
    assert listed[2].endswith("faster")
    told = [line.split() for line in watch.do("switch", "history").splitlines()[1:]]
    assert [(line[0], line[5]) for line in told] == [
        ("1", "committed"),
        ("2", "rolled-back"),
        ("3", "rolled-back"),
        ("4", "rolled-back"),
    ]


@as_root
def test_a_rollback_that_does_not_succeed_says_so_and_goes_on(watch: Watch) -> None:
    variables = watch.world.tmp / "variables"
    variables.write_text("A=1\n")
    agent(watch, EnvironmentFile=str(variables))
    watch.do("switch", "begin", "agent", "--code", build(watch, 2))
    variables.rename(watch.world.tmp / "away")
    result = watch.run("switch", "rollback", "agent")
    assert result.returncode == 1
    assert result.stdout.startswith("agent: the rollback to generation 1 has not succeeded yet: agent did not start: ")
    assert str(variables) in result.stdout
    assert watch.run("switch", "status").returncode == 1

    def refused() -> bool:
        by_hand = watch.run("start", "agent")
        assert by_hand.returncode == 1
        # One that comes while the rollback tries just that itself is refused as that is.
        return "agent is being switched" in by_hand.stderr

    eventually(refused, "a start by hand was refused since it is being switched")
    (watch.world.tmp / "away").rename(variables)
    in_phase(watch, "rolled-back")
    runs(watch, 1)


@as_root
@pytest.mark.orphans  # the ledger's service
def test_what_is_switched_is_on_the_ledger(recorded: World, watch: Watch) -> None:
    agent(watch)
    watch.do("switch", "begin", "agent", "--code", build(watch, 2))
    watch.do("switch", "rollback", "agent")
    watch.down()
    events = events_of(recorded)
    told: list[Any] = [event["event"] for event in events if event["kind"] == "switch"]
    assert [event["phase"] for event in told] == ["staged", "switching", "probation", "rolling-back", "rolled-back"]
    assert [event["step"] for event in told] == [0, 1, 2, 3, 4]
    assert told[1]["members"][0]["after"] == 2
    kinds = [event["kind"] for event in events]
    assert kinds.index("start") < kinds.index("switch") < kinds.index("stop"), "before anything is done"


@as_root
@pytest.mark.orphans
def test_a_daemon_that_is_killed_at_random_moments(watch: Watch) -> None:
    """`OSMODA_SWITCH_KILLS=1000` makes it 100 kills."""
    chance = random.Random(os.environ.get("OSMODA_SWITCH_SEED", "osmoda"))
    agent(watch)
    phases: dict[str, int] = {}
    for number in range(2, 2 + KILLS):
        code = build(watch, number)
        argv = watch.world.osmoda_argv("switch", "begin", "agent", "--code", code, command="osmoda-watch")
        with watch.world.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as asking:
            with contextlib.suppress(subprocess.TimeoutExpired):
                asking.wait(0.1 + chance.random() * 0.5)
            watch.down(signal.SIGKILL)
            asking.communicate(timeout=30)
        watch.up()
        found = eventually(lambda: settled(watch), "the switch was settled")
        phases[found["phase"]] = phases.get(found["phase"], 0) + 1
        if found["phase"] == "never":
            continue
        member = found["members"][0]
        expected = member["before"] if found["phase"] == "rolled-back" else member["after"]
        listed = json.loads(watch.do("switch", "list", "--json"))
        assert [one["generation"] for one in listed if one["current"]] == [expected]
        runs(watch, expected)
        if found["phase"] == "probation":
            watch.do("switch", chance.choice(["commit", "rollback"]), "agent")
    print(phases)


def settled(watch: Watch) -> dict[str, Any] | None:
    """The last switch, once nothing of it is going on; of phase "never" where there was none."""
    found = json.loads(watch.run("switch", "status", "agent", "--json").stdout)
    if not found:
        return {"phase": "never"}
    return found[0] if found[0]["phase"] in ("committed", "probation", "rolled-back") else None


@as_root
@pytest.mark.orphans  # the daemon's sandboxes, when it is killed
def test_a_daemon_that_is_killed_on_probation(watch: Watch) -> None:
    agent(watch)
    watch.do("switch", "begin", "agent", "--code", build(watch, 2), "--probation", "10min")
    runs(watch, 2)
    watch.down(signal.SIGKILL)
    assert "is on probation" in watch.do("switch", "status"), "it is read from the disk"
    watch.up()
    runs(watch, 2)
    assert in_phase(watch, "probation")["seconds_left"] is not None
    assert "rolled back to generation 1" in watch.do("switch", "rollback", "agent")
    runs(watch, 1)
    watch.down(signal.SIGKILL)
    watch.up()
    runs(watch, 1)


@as_root
@pytest.mark.orphans
def test_a_switch_that_comes_before_a_new_daemon_has_started_its_agents(watch: Watch) -> None:
    """The agent is to run: so it runs again when the switch goes back, though the switch has found nothing that ran."""
    agent(watch)
    watch.do("switch", "begin", "agent", "--code", build(watch, 2))
    watch.do("switch", "commit", "agent")
    watch.down(signal.SIGKILL)
    watch.up()
    answer = watch.ask("switch-begin", begin=json.dumps({"agents": [{"name": "agent", "to": 1}]}))
    assert answer["switch"]["phase"] == "probation", answer
    answer = watch.ask("switch-rollback", "agent")
    assert answer["switch"]["phase"] == "rolled-back", answer
    runs(watch, 2)


@as_root
def test_several_agents_at_once_by_a_file_or_none(watch: Watch) -> None:
    agent(watch)
    unit = watch.world.tmp / "writer.service"
    unit.write_text(f"[Service]\nWorkingDirectory={watch.work}/writer\nExecStart={PYTHON} main.py\nRestart=always\n")
    good, bad = build(watch, 2), build(watch, 3, fails=True)
    plan = watch.world.tmp / "plan.toml"
    plan.write_text(
        f'probation = "10min"\n[[agent]]\nname = "agent"\ncode = "{good}"\n'
        f'[[agent]]\nname = "writer"\nunit = "writer.service"\ncode = "{bad}"\n'
    )
    watch.world.own(plan, unit)
    result = watch.run("switch", "begin", "--from", plan, "--wait")
    assert result.returncode == 1, result.stderr
    assert "agent: rolled back to generation 1" in result.stdout
    assert "writer: rolled back to no generation" in result.stdout
    runs(watch, 1)
    assert not os.path.lexists(watch.work / "writer")


IN_VAIN = [
    (["begin"], "which agent? for instance: osmoda-watch switch begin research --code ./build"),
    (["begin", "agent", "--probation", "soon"], "probation=soon"),
    (["begin", "agent", "--keep", "0"], "are at least 1"),
    (["begin", "agent", "--code", "/nowhere"], "/nowhere is no folder"),
    (["begin", "../x"], "'../x' is not the name of a unit"),
    (["commit", "agent"], "agent is not being switched"),
    (["rollback", "agent"], "agent has no generation to go back to"),
    (["rollback", "agent", "--to", "7"], "agent has no generation 7"),
]


@as_root
def test_what_is_asked_in_vain_is_told_in_a_sentence(watch: Watch) -> None:
    agent(watch)
    for words, said in IN_VAIN:
        result = watch.run("switch", *words)
        assert result.returncode != 0, words
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert watch.do("switch", "status") == "nothing was ever switched\n"
    watch.down()
    result = watch.run("switch", "begin", "agent")
    assert "no daemon of this user runs" in result.stderr


# Generation 1 says that it is up; the next one never does, and asks for more time.
SLOW = """\
import os, socket, time
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
    manager.sendto(b"{said}", os.environ["NOTIFY_SOCKET"])
print("generation", {generation}, flush=True)
time.sleep(1000)
"""


@as_root
def test_a_generation_that_does_not_become_ready_keeps_nobody_from_going_back(watch: Watch) -> None:
    folder = watch.folder("agent")
    (folder / "main.py").write_text(SLOW.format(said="READY=1", generation=1))
    watch.world.own(folder)
    watch.unit("agent", Type="notify", TimeoutStartSec="infinity", ExecStart=f"{PYTHON} main.py")
    watch.up()
    watch.do("start", "agent")
    new = build(watch, 2)
    (new / "main.py").write_text(SLOW.format(said="EXTEND_TIMEOUT_USEC=3600000000", generation=2))
    begin = watch.world.osmoda_argv("switch", "begin", "agent", "--code", new, command="osmoda-watch")
    with watch.world.popen(begin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as going:
        watch.wait_for_line("agent", "generation 2")
        assert switched(watch)["phase"] == "switching"
        said = watch.run("switch", "rollback", "agent", timeout=30).stdout
        assert said.startswith("agent: rolled back to generation 1 since ")
        assert "by hand" in said
        going.wait(30)
    runs(watch, 1)
