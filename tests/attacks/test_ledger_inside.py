"""The ledger attacked by who is recorded: from a sandbox, at what its service and its files are."""

from __future__ import annotations

import json

import pytest

from tests.attacks.conftest import Attacker
from tests.ledgers import directory_of, events_of, runtime_of, service_of
from tests.sandboxed import PYTHON
from tests.worlds import World

pytestmark = pytest.mark.orphans  # the ledger's service, which outlives who has started it

# Words: the folder of the ledger, that of its service's socket, the pid of the service.
ATTACKS = """
import errno, json, os, socket, sys
directory, runtime, service = sys.argv[1:]

def attempt(act):
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def connect():
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
        one.connect(f"{runtime}/service.sock")

print(json.dumps({
    "read": attempt(lambda: open(f"{directory}/live.db", "rb").close()),
    "write": attempt(lambda: open(f"{directory}/live.db", "r+b").close()),
    "speak": attempt(connect),
    "signal": attempt(lambda: os.kill(int(service), 0)),
    "look": attempt(lambda: os.stat(f"/proc/{service}/fd")),
}))
"""


def attacks(world: World) -> list[str]:
    pid = service_of(runtime_of(world))
    assert pid
    return [PYTHON, "-I", "-c", ATTACKS, str(directory_of(world)), str(runtime_of(world)), str(pid)]


def answers(output: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(output)
    return found


def test_who_is_recorded_does_not_reach_the_record(recorded: World, attacker: Attacker) -> None:
    """Neither its files nor its service. Layers: the file system and the processes that a sandbox shows; in tier 2
    the filter, too, which has no unix sockets."""
    recorded.osmoda("run", "--", "true", check=True)
    command = attacks(recorded)
    control = answers(recorded.run(command, check=True).stdout)
    assert control == dict.fromkeys(control, "done")
    ended = attacker.run(*command)
    expected = {**dict.fromkeys(control, "ENOENT"), "signal": "ESRCH"}
    if attacker.tier == 2:
        expected["speak"] = "EPERM"
        assert "socket" in ended.refused()
    assert answers(ended.output) == expected
    assert [one["kind"] for one in events_of(recorded)].count("launch") == 2, "and it is still written"


def test_nor_under_a_profile_that_shows_it(recorded: World, attacker: Attacker) -> None:
    """Layers: mounts that are read-only, by which no socket of the host's is reached either; and the compiler."""
    recorded.osmoda("run", "--", "true", check=True)
    command = attacks(recorded)
    places = {"files": directory_of(recorded), "service": runtime_of(recorded)}
    for place in places.values():
        ended = attacker.run(*command, options=["--profile", attacker.profile(f'[filesystem]\nwrite = ["{place}"]\n')])
        assert (ended.status, ended.output) == (125, "")
        assert "where osmoda keeps its own files" in ended.errors
    if attacker.tier == 1:  # beyond the ceiling of tier 2
        shown = {
            name: answers(
                attacker.run(
                    *command, options=["--profile", attacker.profile(f'[filesystem]\nread = ["{place}"]\n')]
                ).output
            )
            for name, place in places.items()
        }
        assert (shown["files"]["read"], shown["files"]["write"]) == ("done", "EROFS"), "the control: it is shown"
        assert shown["service"]["speak"] == "ECONNREFUSED"
        assert {one["signal"] for one in shown.values()} == {"ESRCH"}
