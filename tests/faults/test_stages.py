"""The monitor, the sandbox's first process and the gateway killed, each at every stage of a launch.

A stage is a process held before a system call (held.py). By default a run of the suite takes the stages listed here,
with OSMODA_TEST_STAGES=all every one that the launch has, in both tiers, with and without a network.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from functools import partial

import pytest

from tests.faults.conftest import EVERY_STAGE, Launch, sentence
from tests.faults.held import Ended, Stage, Tracer
from tests.worlds import World

LAST = 0  # in place of a number: the last call of that name

# Before something comes to be or goes, and where somebody is waited for. What a launch does not have is left out.
MONITOR = [
    *[("mkdir", nth) for nth in (1, 2, 3)],
    *[("clone3", nth) for nth in (1, 2, 3, 4)],
    *[("write", nth) for nth in (1, 3, 5, 7, 9)],
    *[("sendmsg", nth) for nth in (1, 2, 3)],
    *[("open_tree", 1), ("socketpair", LAST), ("sendto", 1), ("epoll_create1", 1)],
    *[("recvmsg", nth) for nth in (1, 2, 3, 4)],
    *[("epoll_wait", nth) for nth in (1, 2, LAST)],
    *[("poll", 1), ("rename", LAST), ("wait4", LAST), ("rmdir", 1), ("rmdir", LAST), ("unlink", LAST)],
    ("exit_group", 1),
]
INIT = [
    *[("prctl", 1), ("recvfrom", 1), ("write", 1), ("unshare", 1), ("setgroups", 1), ("setresuid", 1), ("socket", 1)],
    *[("listen", 1), ("sendmsg", 1), ("mount", 1), ("fsmount", 1), ("move_mount", 1), ("mkdirat", 1)],
    *[("move_mount", LAST), ("pivot_root", 1), ("umount2", 1), ("close_range", 1), ("capset", 1)],
    *[("landlock_restrict_self", 1), ("seccomp", 1), ("sendmsg", 2), ("chdir", LAST), ("clone", LAST)],
    *[("pidfd_open", 1), ("sendmsg", LAST), ("wait4", 1), ("kill", 1), ("sendto", LAST), ("exit_group", 1)],
]
GATEWAY = [("setsid", 1), ("prctl", 1), ("close_range", 1), ("bind", 1), ("epoll_wait", 1), ("recvmsg", 1)]
OTHERS = [("map", "prctl", 1), ("janitor", "close_range", 1), ("janitor", "setsid", 1)]
CHOSEN: dict[str, list[tuple[str, str, int]]] = {
    "monitor": [
        *[("monitor", *which) for which in MONITOR],
        *[("init", *which) for which in INIT],
        *[("gateway", *which) for which in GATEWAY],
        *OTHERS,
    ],
    "init": [
        *[("init", *which) for which in INIT],
        *[("monitor", "recvmsg", nth) for nth in (1, 2, 3, 4)],
        *[("monitor", "epoll_wait", nth) for nth in (1, LAST)],
        *[("monitor", "rename", LAST), ("monitor", "rmdir", 1), ("monitor", "sendto", 1)],
    ],
    "gateway": [
        *[("gateway", *which) for which in GATEWAY],
        *[("monitor", "sendmsg", nth) for nth in (1, 2, 3)],
        *[("monitor", "recvmsg", nth) for nth in (1, 2, 3)],
        *[("init", "sendmsg", 1), ("init", "pivot_root", 1), ("init", "recvfrom", LAST), ("init", "wait4", 1)],
        ("monitor", "rename", LAST),
    ],
    "janitor": [
        ("janitor", "close_range", 1),
        ("monitor", "mkdir", 1),
        ("init", "write", 1),
        ("monitor", "rmdir", LAST),
    ],
    "map": [("map", "prctl", 1)],
}

FEWEST = {"monitor": 35, "init": 22, "gateway": 12, "janitor": 4, "map": 1}

# Of two processes the one may end the other before that has come to a stage of its own: launches to find all in.
UNDISTURBED = 20

LAUNCHES = [(tier, network) for tier in (1, 2) for network in (False, True)]


def chosen(victim: str, there: Iterable[Stage]) -> list[Stage]:
    stages = list(dict.fromkeys(there))
    if EVERY_STAGE:
        return stages
    named = []
    for role, call, nth in CHOSEN[victim]:
        same = [stage for stage in stages if (stage.role, stage.call) == (role, call)]
        named += [stage for stage in same if nth in (stage.nth, LAST) and (nth or stage is same[-1])]
    return list(dict.fromkeys(named))


def kill(victim: str) -> Callable[[Tracer], None]:
    def act(tracer: Tracer) -> None:
        pid = tracer.pid(victim)
        if pid:
            os.kill(pid, signal.SIGKILL)

    return act


def monitor_died(ended: Ended) -> None:
    assert ended.status == -signal.SIGKILL
    assert ended.output in ("", "done\n")
    assert ended.errors == ""


def finished(ended: Ended) -> bool:
    return (ended.status, ended.output, ended.errors) == (0, "done\n", "")


def init_died(ended: Ended) -> None:
    if not finished(ended):
        said = sentence(ended.errors)
        assert "the sandbox's first process" in said or "gone" in said, said
        assert ended.status == (125 if "before the command was started" in said else 137), (ended.status, said)


def gateway_died(ended: Ended) -> None:
    if not finished(ended):
        assert "gateway" in sentence(ended.errors)
        assert (ended.status, ended.output) == (125, "")


def janitor_died(ended: Ended) -> None:
    assert finished(ended), ended


def map_died(ended: Ended) -> None:
    if not finished(ended):
        assert "map" in sentence(ended.errors)
        assert (ended.status, ended.output) == (125, "")


JUDGES = {
    "monitor": monitor_died,
    "init": init_died,
    "gateway": gateway_died,
    "janitor": janitor_died,
    "map": map_died,
}


@pytest.mark.orphans
@pytest.mark.parametrize("victim", ["monitor", "init", "gateway"])
def test_killed_at_each_stage(launches: Callable[..., Launch], victim: str, world: World) -> None:
    usual = [(2, True)] if world.is_root else [(1, victim == "gateway")]
    for tier, network in LAUNCHES if EVERY_STAGE else usual:
        if network or victim != "gateway":
            try_each(launches(tier=tier, network=network, limits=world.is_root), victim)


@pytest.mark.orphans
@pytest.mark.parametrize("world", ["root"], indirect=True)
@pytest.mark.parametrize("victim", ["janitor", "map"])
def test_what_only_root_has_is_killed(launches: Callable[..., Launch], victim: str, world: World) -> None:
    """What removes the control group, and the process whose user namespace serves as a map of ids."""
    try_each(launches(limits=True), victim)


def try_each(launch: Launch, victim: str) -> None:
    stages: list[Stage] = []
    for _ in range(UNDISTURBED):
        stages = chosen(victim, launch.stages())
        if len(stages) >= FEWEST[victim]:
            break
    assert len(stages) >= FEWEST[victim], "the stages have other names than are listed here"
    for stage in stages:
        launch.each(str(stage), partial(try_one, launch, stage, victim))


def try_one(launch: Launch, stage: Stage, victim: str) -> None:
    ended = launch.held(stage, kill(victim))
    assert ended.seconds < 25, f"it took {ended.seconds:.1f} s"
    if ended.held:
        JUDGES[victim](ended)
    else:
        assert finished(ended), ended
