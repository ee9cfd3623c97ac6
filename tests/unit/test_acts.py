"""What the supervisor puts on the ledger: nothing that has happened is left out unsaid."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from osmoda.ledger import folder, reading, record
from osmoda.ledger.errors import LedgerError
from osmoda.supervisor.engine import acts
from osmoda.supervisor.engine.acts import Acts
from osmoda.supervisor.errors import SupervisorError
from tests.ledgers import service_of

pytestmark = [
    pytest.mark.usefixtures("places"),
    pytest.mark.orphans,  # the ledger's service, which outlives who has started it
]

DEADLINE = 30.0


def written(directory: Path) -> list[tuple[str, Any]]:
    """What is on the ledger but its first event, as kinds and units."""
    return [(event.kind, event.body.get("unit")) for event in reading.events(str(directory), 2)]


async def until(look: Callable[[], object]) -> None:
    deadline = asyncio.get_running_loop().time() + DEADLINE
    while not look():
        assert asyncio.get_running_loop().time() < deadline, "it took too long"
        await asyncio.sleep(0.01)


def supervising(use: Callable[[Acts], Awaitable[None]]) -> list[str]:
    """Call `use` with the acts of a daemon; what that has said."""
    said: list[str] = []

    async def daemon() -> None:
        found = Acts(said.append)
        found.open()
        try:
            await use(found)
        finally:
            found.close()

    asyncio.run(daemon())
    return said


@pytest.fixture
def stopped(places: tuple[Path, Path]) -> Iterator[Callable[[], None]]:
    """Stop the ledger's service, as a disk that hangs does; it goes on at the end."""
    pids: list[int] = []

    def stop() -> None:
        pids.append(service_of(places[1]))
        os.kill(pids[-1], signal.SIGSTOP)

    yield stop
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def test_what_is_done_is_written_before_it_is_done(places: tuple[Path, Path]) -> None:
    folder.make()

    async def use(found: Acts) -> None:
        await found.before("start", {"unit": "a"})
        assert written(places[0]) == [("start", "a")]
        found.after("stop", {"unit": "a"})
        await found.before("start", {"unit": "b"})

    assert supervising(use) == []
    assert written(places[0]) == [("start", "a"), ("stop", "a"), ("start", "b")]


def test_without_a_ledger_everything_may_be_done(places: tuple[Path, Path]) -> None:
    async def use(found: Acts) -> None:
        await found.before("start", {})
        found.after("end", {})
        assert (found.is_kept, found.opened()) == (False, None)

    assert supervising(use) == []
    assert not places[0].exists()


def test_one_that_is_made_meanwhile_has_all_from_then_on(places: tuple[Path, Path]) -> None:
    async def use(found: Acts) -> None:
        heard: list[bool] = []
        found.when_made(lambda: heard.append(found.is_kept))
        await found.before("start", {"unit": "earlier"})
        folder.make()
        # At once, not only when the loop has heard of it.
        found.after("stop", {"unit": "a"})
        await found.before("start", {"unit": "b"})
        with found.opened() as ledger:
            ledger.append("switch", {"unit": "c"})
        await until(lambda: heard)
        assert heard == [True]

    assert supervising(use) == []
    assert written(places[0]) == [("stop", "a"), ("start", "b"), ("switch", "c")]


def test_one_that_was_made_before_it_is_waited_for(places: tuple[Path, Path]) -> None:
    folder.make()
    heard: list[bool] = []

    async def use(found: Acts) -> None:
        found.when_made(lambda: heard.append(True))

    assert supervising(use) == []
    assert heard == [True]


def test_what_cannot_be_waited_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise OSError(24, "Too many open files")

    async def use(found: Acts) -> None:
        monkeypatch.setattr(acts.syscalls, "inotify_init1", refused)
        with pytest.raises(SupervisorError, match="a ledger is made cannot be followed: Too many open files"):
            found.when_made(lambda: None)

    assert supervising(use) == []


@pytest.mark.parametrize("used", [True, False])
def test_one_that_is_gone_is_not_taken_for_none(places: tuple[Path, Path], used: bool) -> None:
    folder.make()

    async def use(found: Acts) -> None:
        if used:
            await found.before("start", {"unit": "a"})
        places[0].rename(places[0].with_name("elsewhere"))
        with pytest.raises(SupervisorError, match=r"ledger is gone; .* anew; it must be on the ledger$"):
            await found.before("start", {"unit": "b"})
        with pytest.raises(LedgerError, match="is gone"):
            found.opened()
        found.after("stop", {"unit": "a"})
        found.after("stop", {"unit": "b"})

    said = supervising(use)
    assert sorted(line.partition(":")[0] for line in said) == [
        "the ledger does not take what has happened",
        "the ledger has not taken all that has happened",
    ]
    assert not places[0].exists(), "an empty folder would be a ledger that nobody can write"
    assert written(places[0].with_name("elsewhere")) == ([("start", "a")] if used else [])


def test_a_service_that_does_not_answer_keeps_only_those_waiting_that_need_it(
    places: tuple[Path, Path], stopped: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.make()
    # Stopped it cannot answer: what fails after this while would after any.
    monkeypatch.setattr(acts, "PATIENCE", 1.0)

    async def use(found: Acts) -> None:
        stopped()
        asked = asyncio.create_task(found.before("start", {"unit": "b"}))
        turns = 0
        while not asked.done():
            found.after("health", {"unit": "a"})
            turns += 1
            await asyncio.sleep(0.01)
        assert turns > 2, "the loop has waited, too"
        with pytest.raises(SupervisorError, match="service does not answer; it must be on the ledger"):
            await asked
        os.kill(service_of(places[1]), signal.SIGCONT)
        found.after("stop", {"unit": "a"})
        await until(lambda: ("stop", "a") in written(places[0]))

    said = supervising(use)
    assert all("service does not answer" in line for line in said)
    kinds = [kind for kind, _ in written(places[0])]
    assert kinds[-1] == "stop"
    assert kinds.count("health") > 2, "what has happened was written when it went on"


def test_after_the_end_of_its_service_another_one_writes(places: tuple[Path, Path]) -> None:
    folder.make()

    async def use(found: Acts) -> None:
        await found.before("start", {"unit": "a"})
        os.kill(service_of(places[1]), signal.SIGKILL)
        found.after("stop", {"unit": "a"})
        await until(lambda: ("stop", "a") in written(places[0]))

    assert supervising(use) == []


def test_a_ledger_that_cannot_be_written_keeps_the_daemon_from_starting(places: tuple[Path, Path]) -> None:
    places[0].mkdir(parents=True, mode=0o700)
    with pytest.raises(SupervisorError, match=r"key cannot be read: .*; what is supervised here must be on the ledger"):
        Acts(print).open()


def test_a_name_that_is_no_utf8_leaves_its_trace(places: tuple[Path, Path]) -> None:
    """Else an agent would choose such names for what it does not want to be seen doing."""
    fields = {"path": os.fsdecode(b"/shared/\xff"), "folder": False, "pid": 7, "writers": [os.fsdecode(b"\xfe"), "b"]}
    with pytest.raises(LedgerError, match="cannot be written"):
        record.canonical(fields)
    folder.make()

    async def use(found: Acts) -> None:
        found.after("file", fields)

    assert supervising(use) == []
    (event,) = reading.events(str(places[0]), 2)
    assert event.body == {"path": "/shared/\\xff", "folder": False, "pid": 7, "writers": ["\\xfe", "b"]}


def test_what_is_refused_is_said_once(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder.make()

    async def use(found: Acts) -> None:
        await found.before("start", {"unit": "a"})
        monkeypatch.setattr(acts, "_written", dict)  # as if there were fields that no ledger can hold
        for _ in range(3):
            found.after("file", {"path": "\udcff"})
        with pytest.raises(SupervisorError, match="cannot be written"):
            await found.before("start", {"unit": "\udcff"})

    said = supervising(use)
    assert sorted(line.partition(":")[0] for line in said) == [
        "the ledger does not take what has happened",
        "the ledger has not taken all that has happened",
    ]
