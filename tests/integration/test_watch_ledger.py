"""What a supervisor does is on the ledger before it is done; with a ledger that cannot be written nothing starts."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.ledgers import directory_of, end_service, events_of, init, runtime_of
from tests.watched import Watch, eventually
from tests.worlds import World

SLEEPER = "import time\nprint('up', flush=True)\ntime.sleep(1000)\n"


def kinds(watch: Watch, unit: str = "agent.service") -> list[str]:
    """What the supervisor has put there about a unit."""
    events = [event for event in events_of(watch.world) if f'"{unit}"' in json.dumps(event)]
    return [str(event["kind"]) for event in events]


@pytest.mark.orphans  # the ledger's service, which outlives who has started it
@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_what_is_done_is_on_the_ledger_and_what_cannot_be_there_is_not_done(recorded: World, watch: Watch) -> None:
    watch.unit("agent", ExecStart=watch.program("agent", SLEEPER), Restart="always", RestartSec=0)
    watch.unit("other", ExecStart=watch.program("other", SLEEPER))
    watch.up()
    watch.do("start", "agent")
    os.kill(watch.status("agent")["pid"], signal.SIGKILL)
    plan = watch.wait_for("agent", state="active", restarts=1)["plan"]
    watch.do("stop", "agent")
    eventually(lambda: "stop" in kinds(watch), "the stop was written")
    assert kinds(watch) == ["start", "restart", "stop"]
    assert plan in json.dumps(next(event for event in events_of(recorded) if event["kind"] == "start"))

    # A start that came to nothing does not stay as one that was made.
    nowhere = f"append:{watch.folder('lost')}/nowhere/log"
    watch.unit("lost", ExecStart=watch.program("lost", SLEEPER), StandardOutput=nowhere)
    assert watch.run("start", "lost").returncode == 1
    eventually(lambda: kinds(watch, "lost.service") == ["start", "not-started"], "that was written")

    # Its service is gone, and its files are: what would be written now would be lost.
    assert end_service(runtime_of(recorded), signal.SIGKILL)
    directory_of(recorded).rename(directory_of(recorded).with_name("elsewhere"))
    refused = watch.run("start", "other")
    assert refused.returncode == 1
    assert watch.processes() == {}
    assert any("it must be on the ledger" in line for line in watch.lines("other"))


@pytest.mark.orphans
@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_a_ledger_that_is_made_while_the_daemon_runs_has_all_from_then_on(to_be_recorded: World, watch: Watch) -> None:
    watch.unit("agent", ExecStart=watch.program("agent", SLEEPER), Restart="always", RestartSec=0)
    watch.up()
    watch.do("start", "agent")
    init(to_be_recorded)
    os.kill(watch.status("agent")["pid"], signal.SIGKILL)
    watch.wait_for("agent", state="active", restarts=1)
    assert kinds(watch) == ["restart"]
    watch.do("stop", "agent")
    eventually(lambda: "stop" in kinds(watch), "the stop was written")

    # Gone again: that is not as if there had been none.
    directory_of(to_be_recorded).rename(directory_of(to_be_recorded).with_name("elsewhere"))
    assert watch.run("start", "agent").returncode == 1
    assert watch.processes() == {}
    assert any("ledger is gone" in line for line in watch.lines("agent"))
    assert not directory_of(to_be_recorded).exists()


def test_what_happens_after_the_service_has_died_is_written_without_a_further_start(
    recorded: World, watch: Watch
) -> None:
    """Else it waited in memory for a next start, and was gone with a daemon that was killed before that."""
    watch.unit("agent", ExecStart=watch.program("agent", SLEEPER))
    watch.up()
    watch.do("start", "agent")
    assert end_service(runtime_of(recorded), signal.SIGKILL)
    watch.do("stop", "agent")

    def written() -> bool:
        return {"stop", "end"} <= {str(event["kind"]) for event in events_of(recorded)}

    eventually(written, "stop and end were written")
    watch.down(signal.SIGKILL)
