"""Everything on, and everything killed: agents, first processes, launcher, gateways, ledger, daemon, in mid-switch too.

No agent is lost, runs twice, or is for a moment unenforced; the ledger verifies, and holds each start that an agent has
noted; what a switch says on disk is what runs. `OSMODA_WATCH_KILLS` says how often (default: 15; 1000 takes minutes);
`OSMODA_WATCH_SEED` draws the same kills again, and a long run needs OSMODA_TEST_SECONDS=1800, say.
"""

from __future__ import annotations

import bisect
import json
import os
import random
import re
import secrets
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.killed import Deployer, Host, Onlooker
from tests.ledgers import events_of
from tests.watched import Watch, eventually
from tests.worlds import World

KILLS = int(os.environ.get("OSMODA_WATCH_KILLS", "15"))
SEED = int(os.environ.get("OSMODA_WATCH_SEED", str(random.randrange(1 << 30))))
WEIGHTS = {"program": 40, "first process": 20, "launcher": 10, "gateway": 10, "ledger": 10, "daemon": 5, "switch": 5}
# Which generations may start once the ledger has heard that a switch is in a phase.
MAY_START = {
    "staged": ("before",),
    "switching": ("before", "after"),
    "probation": ("after",),
    "committed": ("after",),
    "rolling-back": ("before", "after"),
    "rollback-failed": ("before",),
    "rolled-back": ("before",),
}
type Event = dict[str, Any]


@pytest.fixture
def host(recorded: World, watch: Watch) -> Iterator[Host]:
    found = Host(watch, f"osmoda-kills-{secrets.token_hex(8)}")
    try:
        yield found
    finally:
        watch.down()
        found.close()


@pytest.mark.orphans  # what killed daemons, launchers and ledgers leave to init
@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_everything_killed_at_random_moments(host: Host) -> None:
    print(f"OSMODA_WATCH_KILLS={KILLS} OSMODA_WATCH_SEED={SEED}")
    chance = random.Random(SEED)
    watch = host.watch
    host.install()
    what_agents_try_works_outside(host)
    host.gateway.up()
    watch.up()
    watch.do("start", *[name for name in host.agents if name not in host.enabled])
    eventually(lambda: all(host.starts(name) for name in host.agents), "all had started")

    onlooker, deployer = Onlooker(host.token), Deployer(host, random.Random(SEED))
    done, phases = Counter[str](), Counter[str]()
    began = time.monotonic()
    onlooker.start()
    deployer.start()
    try:
        eventually(host.is_switched, "a first switch was made")
        for kind in kinds(chance):
            found = kill(host, kind, chance, deployer, phases)
            done[kind] += found
            host.reap()
            if sum(done.values()) >= KILLS:
                break
            assert deployer.failure is None
            if found and sum(done.values()) % 100 == 0:
                print(f"{time.monotonic() - began:.0f} s: {dict(done)}", flush=True)
            time.sleep(chance.random() * 0.2)
    finally:
        deployer.ended.set()
        deployer.join(60)
    try:
        assert (deployer.is_alive(), deployer.failure) == (False, None)
        seconds = time.monotonic() - began
        settle(host)
        state = deployed(host)
    finally:
        onlooker.ended.set()
        onlooker.join(30)
    deployer.note_generations()
    assert onlooker.wrong == []
    assert sorted(onlooker.programs().values()) == sorted(host.agents)
    watch.do("stop", *host.agents)
    assert onlooker.programs() == {}
    watch.down()
    host.gateway.down()

    verified = watch.world.run(watch.world.osmoda_argv("verify", command="osmoda-ledger"))
    assert verified.returncode == 0, verified.stdout + verified.stderr
    events = events_of(watch.world)
    for name in host.agents:
        nothing_was_unenforced(host, name)
        each_start_is_on_the_ledger(host, name, events)
    assert host.closed.visits == 0
    each_generation_ran_in_its_time(host, deployer, events)
    history_and_ledger_agree(host, events)
    starts = {name: len(host.starts(name)) for name in host.agents}
    print(f"{sum(done.values())} kills in {seconds:.0f} s: {dict(done)}")
    print(f"the last switch, as a killed daemon left it: {dict(phases)}")
    print(f"programs started: {starts}; looks: {onlooker.looks}, programs seen: {len(onlooker.seen)}")
    print(f"generation {state[0]} is current and runs; switches: {dict(Counter(last_phases(events).values()))}")
    print(f"events: {dict(Counter(event['kind'] for event in events))}; verify: {verified.stdout.strip()}")
    assert len(WEIGHTS) > KILLS or min(starts.values()) > 1


def kinds(chance: random.Random) -> Iterator[str]:
    """One of each in the beginning, then by weight; more than are wanted, since some find nobody to kill."""
    first = [*WEIGHTS]
    chance.shuffle(first)
    yield from first
    yield from chance.choices([*WEIGHTS], [*WEIGHTS.values()], k=KILLS * 10)


def kill(host: Host, kind: str, chance: random.Random, deployer: Deployer, phases: Counter[str]) -> int:
    """Kill one of a kind, and start again what nobody else does; how many that were."""
    watch, gateway = host.watch, host.gateway
    match kind:
        case "program":
            return killed([*Onlooker(host.token).programs()], chance) > 0
        case "first process":
            return killed(host.first_processes(), chance) > 0
        case "launcher":
            return killed(host.launchers(), chance) > 0
        case "ledger":
            return killed([host.ledger()], chance) > 0
        case "gateway":
            assert gateway.process is not None
            victim = killed([gateway.process.pid, *gateway.workers(), *host.own_gateways()], chance)
            if victim == gateway.process.pid:
                gateway.down(signal.SIGKILL)
                time.sleep(chance.random() * 0.3)
                gateway.up()
            return victim > 0
        case _:
            if kind == "switch":
                deployer.begun.clear()
                deployer.begun.wait(10)
                time.sleep(chance.random() * 0.5)
            watch.down(signal.SIGKILL)
            numbers = host.records().numbers()
            if numbers:
                phases[host.records().load(numbers[-1]).phase] += 1
            watch.up()
            return 1


def killed(pids: list[int], chance: random.Random) -> int:
    """The one of these that was killed; 0 where there was none."""
    there = sorted(pid for pid in pids if pid > 1)
    if not there:
        return 0
    pid = chance.choice(there)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return pid


def settle(host: Host) -> None:
    """Nothing is killed any more: all that should be there is there again."""
    watch = host.watch

    def no_switch() -> bool:
        return not watch.ask("switch-status")["switches"]

    eventually(no_switch, "no switch was going on")
    eventually(lambda: all(host.is_up(name) for name in host.agents), "all were up again")
    now = time.time_ns()
    eventually(
        lambda: any(note["at"] > now for note in host.notes("net") if note["what"] == "reached"), "a network was"
    )
    eventually(lambda: sorted(Onlooker(host.token).programs().values()) == sorted(host.agents), "each ran once")


# --- that the attempts are real ---


def what_agents_try_works_outside(host: Host) -> None:
    onlooker = Onlooker(host.token)

    def all_done() -> bool:
        onlooker.look()
        noted = {note.get("by", note["what"]) for note in host.notes("outside")}
        told = " ".join(onlooker.wrong)
        return {"reading", "connecting", "twice"} <= noted and "several times" in told and "unenforced" in told

    host.outside(all_done)
    assert host.closed.visits > 0
    host.closed.visits = 0


# --- what must be true afterwards ---


def nothing_was_unenforced(host: Host, name: str) -> None:
    notes = host.notes(name)
    assert {note["what"] for note in notes} <= {"start", "reached"}, [
        n for n in notes if n["what"] in ("breach", "twice")
    ]
    for note in host.starts(name):
        assert (note["Seccomp"], note["NoNewPrivs"]) == ("2", "1"), note
        assert int(note["CapEff"], 16) == int(note["CapBnd"], 16) == 0, note


def each_start_is_on_the_ledger(host: Host, name: str, events: list[Event]) -> None:
    """The supervisor's event and the launch of exactly this sandbox, before the program has said its first word."""
    word = host.token + name
    launches = [event for event in events if event["kind"] == "launch" and word in event["event"]["argv"]]
    by_identity: dict[str, list[Event]] = {}
    for event in launches:
        by_identity.setdefault(event["event"]["identity"], []).append(event)
    asked = [moment(event) for event in events if event["kind"] in ("start", "restart") and is_of(event, name)]
    assert asked == sorted(asked)
    earlier = 0
    nameless = []
    for note in host.starts(name):
        found = re.match(r"osmoda-init ([0-9a-f]+-[0-9a-f]+) tier-", note["init"])
        if note["init"]:
            assert found is not None, note
            (launch,) = by_identity.pop(found[1])
            assert moment(launch) < note["at"], (launch, note)
        else:
            nameless.append(note)  # it looked when its first process was killed already, and it was about to be
        index = bisect.bisect_left(asked, note["at"])
        assert index > earlier, f"{name} started without a word of its supervisor on the ledger: {note}"
        earlier = index
    left = sorted(moment(launch) for found in by_identity.values() for launch in found)
    for count, note in enumerate(nameless, 1):
        assert bisect.bisect_left(left, note["at"]) >= count, f"{name} was launched without a word of it: {note}"


def is_of(event: Event, name: str) -> bool:
    return bool(event["event"]["unit"] == f"{name}.service")


def moment(event: Event) -> int:
    """In ns since the epoch."""
    return int(event["time"])


def deployed(host: Host) -> tuple[int, str]:
    """The current generation by what is on disk, which must be the one whose program runs."""
    listed = json.loads(host.watch.do("switch", "list", "deployed", "--json"))
    (current,) = [one["generation"] for one in listed if one["current"]]
    digest = dict(host.generations())[current]
    eventually(lambda: host.starts("deployed")[-1]["digest"] == digest, f"generation {current} ran")
    return current, digest


def each_generation_ran_in_its_time(host: Host, deployer: Deployer, events: list[Event]) -> None:
    """What a program of the agent was, and what the ledger had last heard of its switches then."""
    heard = [event for event in events if event["kind"] == "switch"]
    times = [moment(event) for event in heard]
    for note in host.starts("deployed"):
        index = bisect.bisect_left(times, note["at"])
        if index == 0:
            continue  # before it was first switched
        event = heard[index - 1]["event"]
        (member,) = event["members"]
        allowed = [member[which] for which in MAY_START[event["phase"]]]
        known = [number for number, digests in deployer.made.items() if note["digest"] in digests]
        assert {*known} & {*allowed}, f"generation {known} was started, and the ledger had heard {event}"


def last_phases(events: list[Event]) -> dict[int, str]:
    """Of each switch, what the ledger heard of it last; what it was told twice, it was told alike."""
    story: dict[int, dict[int, str]] = {}
    for event in (event["event"] for event in events if event["kind"] == "switch"):
        steps = story.setdefault(event["switch"], {})
        assert steps.setdefault(event["step"], event["phase"]) == event["phase"], event
    for number, steps in story.items():
        assert [*steps] == [*range(len(steps))], (number, steps)
    return {number: steps[max(steps)] for number, steps in story.items()}


def history_and_ledger_agree(host: Host, events: list[Event]) -> None:
    history = json.loads(host.watch.do("switch", "history", "--json"))
    told = last_phases(events)
    assert {*told.values()} <= {"committed", "rolled-back"}
    assert history
    assert max(told) == history[-1]["switch"]
    for switch in history:
        assert (switch["phase"], switch["not_on_ledger"]) == (told[switch["switch"]], 0), switch
