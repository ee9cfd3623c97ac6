"""Events from many clients to the disk: durable when acknowledged, once each, in order, whoever is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from osmoda.host import paths
from osmoda.ledger import client, folder, reading, record, verification
from osmoda.ledger.client import Ledger, open_ledger
from osmoda.ledger.errors import LedgerError
from tests.ledgers import end_service, service_of

BODY = {"agent": "research", "argv": ["true"]}


@pytest.fixture
def ledger(places: tuple[Path, Path]) -> Iterator[Ledger]:
    folder.make()
    opened = open_ledger()
    assert opened is not None
    with opened:
        yield opened


def events(places: tuple[Path, Path], kind: str = "launch") -> list[dict[str, object]]:
    report = verification.verify(str(places[0]))
    assert report.findings == []
    return [event.body for event in reading.events(str(places[0])) if event.kind == kind]


def test_without_a_ledger_there_is_none_and_nothing_is_made(places):
    assert open_ledger() is None
    assert not places[0].parent.exists()
    assert not places[1].parent.exists()


def test_there_is_a_ledger_where_anything_bears_its_name(places):
    """A link that leads nowhere is no reason to go without one."""
    assert not paths.has_ledger()
    places[0].parent.mkdir(parents=True)
    places[0].symlink_to("nowhere")
    assert paths.has_ledger()
    with pytest.raises(LedgerError, match="not a directory"):
        open_ledger()


def test_an_event_is_on_the_ledger_when_append_returns(places, ledger):
    assert ledger.append("launch", BODY) == 2
    assert ledger.append("edit", {"file": "a.toml"}) == 3
    last = list(reading.events(str(places[0])))[-1]
    assert (last.kind, last.body, last.uid) == ("edit", {"file": "a.toml"}, os.getuid())
    assert last.pid == os.getpid()


def test_one_that_is_gone_is_not_made_anew_by_whoever_wants_to_write(places, ledger):
    """An empty folder in its place would be a ledger that nobody can write, and nothing could be run."""
    ledger.append("launch", BODY)
    end_service(places[1])
    places[0].rename(places[0].with_name("elsewhere"))
    with pytest.raises(LedgerError, match="state/ledger: No such file or directory"):
        ledger.append("launch", BODY)
    assert not places[0].exists()


def test_what_is_submitted_is_written_in_order(places, ledger):
    tickets = [ledger.submit("launch", {"n": number}) for number in range(3000)]
    numbers = [ticket.wait() for ticket in tickets]
    assert numbers == list(range(2, 3002))
    assert [event["n"] for event in events(places)] == list(range(3000))


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        ("launch", {"x": 1.5}, "float"),
        ("launch", {"x": object()}, "cannot be written"),
        ("launch", {"x": "a" * 200_000}, "too long"),
        ("launch", {"x": "a" * 70_000}, "too long"),
        ("No kind", {}, "no kind"),
        ("segment", {}, "no kind"),
        ("ledger", {}, "no kind"),
    ],
)
def test_what_cannot_be_written_is_refused_and_the_next_event_is_not(places, ledger, kind, fields, reason):
    before, refused, after = (
        ledger.submit("launch", {"n": 1}),
        ledger.submit(kind, fields),
        ledger.submit("launch", {"n": 2}),
    )
    with pytest.raises(LedgerError, match=reason):
        refused.wait()
    assert (before.wait(), after.wait()) == (2, 3)
    assert [event["n"] for event in events(places)] == [1, 2]


def test_threads_share_a_connection(places, ledger):
    found: list[int] = []

    def write(number):
        found.extend(ledger.append("launch", {"thread": number, "n": count}) for count in range(30))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == list(range(2, 242))
    for number in range(8):
        assert [event["n"] for event in events(places) if event["thread"] == number] == list(range(30))


def test_a_service_that_is_killed_is_started_again_and_has_lost_nothing(places, ledger):
    for number in range(5):
        ledger.append("launch", {"n": number})
        assert end_service(places[1], signal.SIGKILL)
    assert [event["n"] for event in events(places)] == list(range(5))


def test_what_a_killed_service_had_not_acknowledged_is_written_once(places, ledger):
    tickets = []
    for number in range(400):
        tickets.append(ledger.submit("launch", {"n": number}))
        if number == 200:
            end_service(places[1], signal.SIGKILL)
    assert ledger.flush() == ""
    assert [event["n"] for event in events(places)] == list(range(400))
    numbers = [ticket.seq for ticket in tickets]
    assert sorted(set(numbers)) == numbers
    on_ledger = {event.seq: event.body.get("n") for event in reading.events(str(places[0]))}
    assert [on_ledger[seq] for seq in numbers] == list(range(400)), "each has been told its own number"


def test_a_client_that_was_cut_off_sends_again_what_it_was_not_told_of(places, ledger):
    """Its connection breaks, the service lives: what was received is not written twice."""
    tickets = [ledger.submit("launch", {"n": number}) for number in range(100)]
    ledger._lose("cut")
    assert ledger.flush() == ""
    assert [event["n"] for event in events(places)] == list(range(100))
    assert [ticket.seq for ticket in tickets] == list(range(2, 102))


def test_a_service_that_does_not_answer_is_not_waited_for_for_ever(places, ledger):
    ledger.append("launch", {"n": 0})
    pid = service_of(places[1])
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(LedgerError, match="not answered within"):
            ledger.submit("launch", {"n": 1}).wait(0.2)
    finally:
        os.kill(pid, signal.SIGCONT)
    later = ledger.submit("launch", {"n": 2})
    assert later.wait() == list(reading.events(str(places[0])))[-1].seq
    assert [event["n"] for event in events(places)][-1] == 2


def test_a_forked_child_has_a_connection_of_its_own(places, ledger):
    ledger.append("launch", {"n": 0})
    waiting = ledger.submit("launch", {"n": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # xdist has threads; the child calls nothing of theirs
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ledger.append("launch", {"n": 2})
            status = 0
        finally:
            os._exit(status)
    assert waiting.wait() == 3
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert ledger.append("launch", {"n": 3}) == 5
    assert [event["n"] for event in events(places)] == [0, 1, 2, 3]
    pids = [event.pid for event in reading.events(str(places[0]), 2)]
    assert pids == [os.getpid(), os.getpid(), pid, os.getpid()]


def test_many_that_need_it_at_once_start_one_service(places, ledger):
    ledger.close()
    assert end_service(places[1])
    program = (
        "import posix, sys; posix.environ.update({b'OSMODA_STATE_DIR': sys.argv[1].encode(), "
        "b'OSMODA_RUNTIME_DIR': sys.argv[2].encode()});"
        "from osmoda.ledger.client import open_ledger; from osmoda.ledger import client; import _socket;"
        "l = open_ledger(); l.append('launch', {'pid': posix.getpid()});"
        "print(int.from_bytes(l._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)[:4], 'little'))"
    )
    argv = [sys.executable, "-c", program, str(places[0].parent), str(places[1].parent)]
    started = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    answers = {process.communicate(timeout=60)[0] for process in started}
    assert all(process.returncode == 0 for process in started)
    assert len(answers) == 1
    assert len(events(places)) == 6


def test_a_service_ends_when_nobody_needs_it(places):
    folder.make()
    program = "import sys; from osmoda.ledger.service import main; main(sys.argv[1], sys.argv[2], 0.1)"
    places[1].mkdir(parents=True)
    argv = [sys.executable, "-c", program, str(places[0]), str(places[1])]
    said = subprocess.run(argv, stderr=subprocess.PIPE, timeout=60, check=True).stderr
    assert said == client.GREETING
    end = time.monotonic() + 30
    while service_of(places[1]):
        assert time.monotonic() < end, "it does not end"
        time.sleep(0.15)
    assert sorted(path.name for path in places[0].iterdir()) == ["head", "key", "live.db", "manifest", "segments"]
    left = os.waitpid(-1, 0)
    assert left[1] == 0


def test_another_s_ledger_is_not_used(places, monkeypatch):
    folder.make()
    places[0].chmod(0o777)
    with pytest.raises(LedgerError, match="only this user"):
        open_ledger()


@pytest.mark.orphans
def test_a_ledger_that_cannot_be_written_says_why(places):
    folder.make()
    (places[0] / "head").unlink()
    with pytest.raises(LedgerError, match="head"):
        open_ledger()


def test_who_has_no_right_to_start_a_service_is_told_that_none_runs(places):
    folder.make()
    with pytest.raises(LedgerError, match="does not run"):
        open_ledger(start=False)


def test_a_message_that_is_none_is_refused_and_others_are_served(places, ledger):
    connection = client._connect(str(places[1]))
    assert connection is not None
    with contextlib.closing(connection):
        connection.send(b"nonsense")
        assert b"refused" in connection.recv(4096)
        assert connection.recv(4096) == b""
    assert ledger.append("launch", BODY) == 2


@pytest.mark.parametrize(("text", "written"), [("é", "é"), ("a\udcff", "a\\xff"), ("a\ud800b", "a\\ud800b"), ("", "")])
def test_whatever_a_name_is_it_can_be_written(text, written):
    assert client.printable(text) == written
    record.canonical({"name": client.printable(text)})


def test_the_events_are_json_lines(places, ledger):
    ledger.append("launch", BODY)
    from osmoda.sandbox import ledger_words

    lines = [json.loads(ledger_words.as_line(event)) for event in reading.events(str(places[0]))]
    assert lines[1]["event"] == BODY
    assert lines[1]["seq"] == 2
