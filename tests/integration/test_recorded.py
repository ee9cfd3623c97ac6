"""What runs, edits and decisions leave on the ledger; and that they are not done where that cannot be."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from osmoda.sandbox import LaunchError, Pool, Sandbox
from tests.ledgers import directory_of, end_service, events_of, runtime_of, service_of
from tests.worlds import World

# A service that cannot use its ledger ends at once, and is init's to reap.
pytestmark = pytest.mark.orphans


def of_kind(world: World, kind: str) -> list[dict[str, object]]:
    return [one["event"] for one in events_of(world) if one["kind"] == kind]


def seal_off(world: World) -> None:
    """Damage the ledger as somebody might who wants no more to be written to it."""
    end_service(runtime_of(world))
    (directory_of(world) / "head").rename(world.tmp / "head")


def mend(world: World) -> None:
    (world.tmp / "head").rename(directory_of(world) / "head")


def test_a_run_is_on_the_ledger_with_its_plan_and_its_end(recorded: World):
    done = recorded.osmoda("run", "--tier", "2", "--agent", "research", "--", "sh", "-c", "exit 3")
    assert done.returncode == 3
    (launch,), (end,) = of_kind(recorded, "launch"), of_kind(recorded, "end")
    assert launch["argv"] == ["sh", "-c", "exit 3"]
    assert (launch["agent"], launch["tier"], launch["degraded"]) == ("research", 2, [])
    assert len(str(launch["plan"])) == 64
    assert end["identity"] == launch["identity"]
    assert (end["status"], end["signal"], end["timed_out"]) == (3, 0, False)
    kinds = [one["kind"] for one in events_of(recorded)]
    assert kinds == ["ledger", "launch", "end"]
    assert {one["uid"] for one in events_of(recorded)} == {recorded.uid}


def test_the_same_plan_has_the_same_name_and_another_another(recorded: World):
    for tier in ("2", "2", "1"):
        assert recorded.osmoda("run", "--tier", tier, "--", "true").returncode == 0
    plans = [launch["plan"] for launch in of_kind(recorded, "launch")]
    assert plans[0] == plans[1] != plans[2]


def test_refused_calls_are_on_it(recorded: World):
    recorded.osmoda("run", "--tier", "2", "--", "unshare", "-n", "true")
    (denial,) = of_kind(recorded, "denial")
    assert denial["command"] == "unshare"
    assert denial["count"] == 1
    shown = recorded.run(World.osmoda_argv("show", "--kind", "denial", command="osmoda-ledger")).stdout
    assert "unshare(CLONE_NEWNET)" in shown


def test_a_command_that_is_not_there_was_launched_and_came_to_nothing(recorded: World):
    assert recorded.osmoda("run", "--", "no-such-program").returncode == 127
    (end,) = of_kind(recorded, "end")
    assert "no-such-program" in str(end["error"])


def test_a_name_that_is_no_utf8_and_a_long_command_line_are_written_all_the_same(recorded: World):
    long = "x" * 100_000
    argv = [os.fsencode(word) for word in World.osmoda_argv("run", "--", "true")] + [b"\xff", long.encode()]
    assert recorded.run(argv).returncode == 0
    (launch,) = of_kind(recorded, "launch")
    assert launch["argv"][:2] == ["true", "\\xff"]
    assert launch["words"] == 3
    assert len(str(launch["argv_sha256"])) == 64
    assert len(json.dumps(launch)) < 20_000


def test_nothing_runs_that_cannot_be_put_on_it(recorded: World):
    marker = recorded.tmp / "work" / "ran"
    marker.parent.mkdir()
    recorded.own(marker.parent)
    argv = ("run", "--tier", "1", "--workspace-mode", "direct", "--workspace", str(marker.parent), "--", "touch", "ran")
    assert recorded.osmoda(*argv).returncode == 0
    assert marker.exists(), "the control: it does run"
    marker.unlink()
    seal_off(recorded)
    done = recorded.osmoda(*argv)
    assert done.returncode == 125
    assert "cannot be put on the ledger, so nothing was run" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not marker.exists()
    mend(recorded)
    assert recorded.osmoda(*argv).returncode == 0
    assert marker.exists()


def test_a_service_that_does_not_answer_keeps_the_command_from_running(recorded: World):
    assert recorded.osmoda("run", "--", "true").returncode == 0
    pid = service_of(runtime_of(recorded))
    os.kill(pid, signal.SIGSTOP)
    try:
        done = recorded.osmoda("run", "--", "echo", "ran")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (done.returncode, done.stdout) == (125, "")
    assert "does not answer" in done.stderr


def test_a_service_that_is_killed_between_two_runs_costs_nothing(recorded: World):
    for _ in range(3):
        assert recorded.osmoda("run", "--", "true").returncode == 0
        assert end_service(runtime_of(recorded), signal.SIGKILL)
    assert len(of_kind(recorded, "launch")) == len(of_kind(recorded, "end")) == 3


def use_the_api() -> list[int]:
    sandbox = Sandbox(tier=2)
    statuses = [sandbox.run(["sh", "-c", f"exit {number}"]).status for number in range(3)]
    with Pool(tier=2, size=2) as pool:
        statuses += [pool.run(["sh", "-c", f"exit {number}"]).status for number in range(3, 6)]
    return statuses


def test_programs_and_pools_are_on_it(recorded: World):
    assert recorded.call(use_the_api) == list(range(6))
    launches = of_kind(recorded, "launch")
    assert [launch["argv"] for launch in launches] == [["sh", "-c", f"exit {number}"] for number in range(6)]
    ends = {end["identity"]: end["status"] for end in of_kind(recorded, "end")}
    assert [ends[launch["identity"]] for launch in launches] == list(range(6))


def use_a_pool_that_waits(directory: str, runtime: str) -> tuple[int, str, int]:
    """While the sandboxes of a pool wait, the ledger can be written, cannot, and can again."""
    with Pool(tier=2, size=1) as pool:
        first = pool.run(["true"]).status
        end_service(Path(runtime), signal.SIGKILL)
        os.rename(f"{directory}/head", f"{directory}/../head")
        try:
            pool.run(["true"])
            said = "it ran"
        except LaunchError as error:
            said = str(error)
        os.rename(f"{directory}/../head", f"{directory}/head")
        return first, said, pool.run(["true"]).status


def test_a_pool_s_sandbox_does_not_run_what_cannot_be_put_on_it(recorded: World):
    first, said, last = recorded.call(use_a_pool_that_waits, str(directory_of(recorded)), str(runtime_of(recorded)))
    assert (first, last) == (0, 0)
    assert "cannot be put on the ledger" in said
    assert len(of_kind(recorded, "launch")) == 2


def make_one_while_a_pool_waits(argv: list[str]) -> tuple[int, int]:
    with Pool(tier=2, size=2) as pool:
        before = pool.run(["true"]).status
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        return before, pool.run(["echo", "recorded"]).status


def test_a_ledger_that_is_made_while_a_pool_waits_has_its_next_command(world: World):
    argv = World.osmoda_argv("init", command="osmoda-ledger")
    try:
        assert world.call(make_one_while_a_pool_waits, argv) == (0, 0)
        assert [launch["argv"] for launch in of_kind(world, "launch")] == [["echo", "recorded"]]
    finally:
        end_service(runtime_of(world))


def imported(world: World, *argv: str) -> set[str]:
    command = [sys.executable, "-I", "-S", "-X", "importtime", *World.osmoda_argv("run", *argv)[-len(argv) - 2 :]]
    lines = world.run(command, check=True).stderr.splitlines()
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}


def test_without_a_ledger_nothing_of_it_is_loaded(world: World):
    for _ in range(2):
        found = imported(world, "--tier", "2", "--", "true")
    assert "osmoda.sandbox.foreground" in found
    assert not {name for name in found if "ledger" in name or name == "osmoda.sandbox.recording"}
    assert not directory_of(world).exists()


def test_with_one_a_launch_loads_no_database(recorded: World):
    for _ in range(2):
        found = imported(recorded, "--tier", "2", "--", "true")
    assert "osmoda.ledger.client" in found
    assert not found & {"sqlite3", "json", "os", "typing", "cryptography", "msgspec"}


# Edits


PROFILE = 'schema = 1\ntier = 1\n[network]\nallow = ["www.example.test"]\n'


@pytest.fixture
def profile(recorded: World) -> Path:
    path = recorded.tmp / "agent.toml"
    path.write_text(PROFILE)
    recorded.own(path)
    return path


def test_an_edit_is_on_it_before_it_is_made(recorded: World, profile: Path):
    assert recorded.egress("allow", str(profile), "api.example.test").returncode == 0
    (edit,) = of_kind(recorded, "edit")
    assert edit["file"] == str(profile)
    assert "api.example.test" in str(edit["what"])
    assert edit["before"] != edit["sha256"]


def test_an_edit_that_cannot_be_put_on_it_is_not_made(recorded: World, profile: Path):
    seal_off(recorded)
    done = recorded.egress("allow", str(profile), "api.example.test")
    assert done.returncode == 125
    assert "so it was not done" in done.stderr
    assert profile.read_text() == PROFILE
    mend(recorded)
    assert recorded.egress("allow", str(profile), "api.example.test").returncode == 0
    assert profile.read_text() != PROFILE


def test_a_commit_of_an_overlay_is_on_it(recorded: World):
    work = recorded.tmp / "work"
    work.mkdir()
    recorded.own(work)
    argv = ("run", "--tier", "1", "--workspace", str(work), "--workspace-mode", "overlay", "--", "touch", "new")
    assert recorded.osmoda(*argv).returncode == 0
    assert recorded.osmoda("commit", cwd=work).returncode == 0
    (file,) = of_kind(recorded, "file")
    assert (file["what"], file["count"], file["paths"]) == ("commit", 1, ["new"])


# The command


def ledger(world: World, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return world.run(World.osmoda_argv(*arguments, command="osmoda-ledger"), **options)


def test_without_a_ledger_the_command_says_how_to_make_one(world: World):
    for verb in ("show", "verify", "export", "checkpoint", "follow"):
        done = ledger(world, verb)
        assert (done.returncode, done.stdout) == (125, "")
        assert "osmoda-ledger init" in done.stderr


def test_a_second_ledger_is_not_made(recorded: World):
    done = ledger(recorded, "init")
    assert done.returncode == 125
    assert "there is a ledger already" in done.stderr


def test_events_are_shown_by_kind_agent_and_sandbox(recorded: World):
    for name in ("research", "writer"):
        recorded.osmoda("run", "--agent", name, "--", "true")
    lines = ledger(recorded, "show", "--agent", "writer").stdout.splitlines()
    assert len(lines) == 1
    assert "launch" in lines[0]
    everything = json.loads(ledger(recorded, "show", "-n", "0", "--json").stdout)
    assert [one["kind"] for one in everything] == ["ledger", "launch", "end", "launch", "end"]
    identity = everything[1]["event"]["identity"]
    assert len(ledger(recorded, "show", "--sandbox", identity).stdout.splitlines()) == 2
    assert len(ledger(recorded, "show", "-n", "2").stdout.splitlines()) == 2
    assert ledger(recorded, "show", "--since", "2100-01-01").stdout == ""
    assert len(ledger(recorded, "show", "--since", "1h").stdout.splitlines()) == 5
    assert "\x1b" not in ledger(recorded, "show").stdout


def test_a_ledger_is_verified_against_a_checkpoint_and_a_cut_one_is_not(recorded: World):
    kept = recorded.tmp / "kept"
    kept.write_text(ledger(recorded, "checkpoint").stdout)
    copy = recorded.tmp / "copy"
    shutil.copytree(directory_of(recorded), copy)
    recorded.own(copy)
    recorded.osmoda("run", "--", "true")
    assert ledger(recorded, "verify", "--checkpoint", str(kept)).returncode == 0
    newer = recorded.tmp / "newer"
    newer.write_text(ledger(recorded, "checkpoint").stdout)
    assert ledger(recorded, "verify", "--ledger", str(copy), "--checkpoint", str(kept)).returncode == 0
    done = ledger(recorded, "verify", "--ledger", str(copy), "--checkpoint", str(newer), "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["verified"] is False
    assert "are gone" in found["findings"][0]["text"]
    told = ledger(recorded, "verify", "--ledger", str(copy), "--checkpoint", str(newer))
    assert "this ledger is not as it was written" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("shew",), "did you mean show"),
        (("show", "--since", "soon"), "want a time"),
        (("verify", "--checkpoint", "/nowhere"), "/nowhere"),
        (("verify", "--ledger", "/nowhere"), "there is no ledger"),
        (("export", "--from", "0"), "from 1"),
    ],
)
def test_mistakes_are_one_sentence(recorded: World, arguments: tuple[str, ...], words: str):
    done = ledger(recorded, *arguments)
    assert done.returncode == 125
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_events_are_followed_as_they_come(recorded: World):
    argv = World.osmoda_argv("follow", "--kind", "launch", "--json", command="osmoda-ledger")
    with recorded.popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for number in range(3):
                recorded.osmoda("run", "--", "true")
                assert json.loads(process.stdout.readline())["seq"] == 2 + 2 * number
        finally:
            process.terminate()
            process.communicate(timeout=30)


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_shells_complete_it(world: World, shell: str):
    assert "checkpoint" in ledger(world, "completion", shell).stdout
