"""Names to addresses: what is shared, what is kept, how long it may take, and that no session stops another."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time

import pytest

from osmoda.egress import upstream as module
from osmoda.egress.loop import Loop
from osmoda.egress.upstream import Upstream, UpstreamError, look_up
from tests import looping
from tests.looping import PATIENCE

FOUND = [bytes([192, 0, 2, 1])]


class Names:
    """A resolver that answers a name when it is told to; others at once."""

    def __init__(self):
        self.hanging = {}
        self.asked = []
        self.lock = threading.Lock()

    def hang(self, *names):
        for name in names:
            self.hanging[name] = threading.Event()

    def release(self, *names):
        for name in names or tuple(self.hanging):
            self.hanging[name].set()

    def __call__(self, name):
        with self.lock:
            self.asked.append(name)
        if name in self.hanging:
            assert self.hanging[name].wait(PATIENCE)
        if name.startswith("missing"):
            raise UpstreamError("unresolvable", f"{name} has no address")
        if name.startswith("broken"):
            raise RuntimeError("on purpose")
        return FOUND


class Scene:
    def __init__(self, **options):
        self.loop = Loop()
        self.names = Names()
        self.upstream = Upstream(self.loop, lookup=self.names, **options)

    def ask(self, *names, session="one"):
        """The answers as they come, by name."""
        answers = {}
        for name in names:
            self.upstream.resolve(session, name, 443, lambda answer, name=name: answers.setdefault(name, answer))
        return answers

    def until(self, condition):
        looping.until(self.loop, condition)

    def later(self, seconds):
        """As if that much time had passed, for what is kept."""
        self.upstream._known = {
            name: (until - seconds, answer) for name, (until, answer) in self.upstream._known.items()
        }

    def close(self):
        self.names.release()
        self.until(lambda: len(self.upstream._idle) == self.upstream._workers)
        self.upstream.close()
        self.loop.shut()


@pytest.fixture
def scene():
    scene = Scene()
    yield scene
    scene.close()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.05)


def kind(answer):
    assert isinstance(answer, UpstreamError)
    return answer.kind


# Answers


def test_a_name_is_resolved_in_a_thread(scene):
    answers = scene.ask("example.com")
    assert answers == {}
    scene.until(lambda: answers)
    assert answers == {"example.com": FOUND}


def test_no_thread_is_started_before_it_is_needed(scene):
    before = threading.active_count()
    assert scene.upstream._workers == 0
    scene.ask("example.com")
    assert scene.upstream._workers == 1
    assert threading.active_count() >= before


def test_a_missing_name(scene):
    answers = scene.ask("missing.example")
    scene.until(lambda: answers)
    assert kind(answers["missing.example"]) == "unresolvable"
    assert scene.upstream.known_failure("missing.example") == "missing.example has no address"
    assert scene.upstream.known_failure("example.com") == ""


def test_a_fault_of_the_resolver_is_an_answer_too(scene):
    answers = scene.ask("broken.example")
    scene.until(lambda: answers)
    assert kind(answers["broken.example"]) == "busy"
    assert "on purpose" in answers["broken.example"].text
    assert scene.ask("example.com") is not None


@pytest.mark.parametrize("name", ["127.1", "2130706433", "0x7f000001", "1.2.3.4", "a.0x10"])
def test_what_resolvers_would_read_as_an_address_is_no_name(scene, name):
    answers = scene.ask(name)
    assert kind(answers[name]) == "unresolvable"
    assert scene.names.asked == []


def test_those_who_ask_for_the_same_name_share_one_lookup(scene):
    scene.names.hang("slow.example")
    answers = [scene.ask("slow.example", session=session) for session in ("one", "two", "one")]
    scene.until(lambda: scene.names.asked)
    scene.names.release()
    scene.until(lambda: all(answers))
    assert answers == [{"slow.example": FOUND}] * 3
    assert scene.names.asked == ["slow.example"]


def test_one_who_fails_does_not_keep_the_answer_from_the_others(scene):
    heard = []
    scene.loop.on_error = lambda callback, error: heard.append(error)

    def fails(answer):
        raise RuntimeError("on purpose")

    scene.upstream.resolve("one", "example.com", 443, fails)
    answers = scene.ask("example.com")
    scene.until(lambda: answers and heard)
    assert answers["example.com"] == FOUND


def test_who_fails_over_an_answer_is_told(scene):
    class Asker:
        failed = False

        def hear(self, answer):
            raise RuntimeError("on purpose")

        def fault(self):
            self.failed = True

    asker = Asker()
    scene.loop.on_error = lambda callback, error: module.fault(callback)
    scene.upstream.resolve("one", "example.com", 443, asker.hear)
    scene.until(lambda: asker.failed)


def test_an_answer_is_used_again_for_ten_seconds(scene):
    answers = scene.ask("example.com")
    scene.until(lambda: answers)
    again = scene.ask("example.com")
    assert again["example.com"] is answers["example.com"]
    scene.later(9.5)
    assert scene.ask("example.com") != {}
    scene.later(1.0)
    assert scene.upstream.cached("example.com") is None
    answers = scene.ask("example.com")
    scene.until(lambda: answers)
    assert scene.names.asked == ["example.com"] * 2


def test_a_failure_is_used_again_for_two_seconds(scene):
    answers = scene.ask("missing.example")
    scene.until(lambda: answers)
    assert scene.ask("missing.example") != {}
    scene.later(2.1)
    answers = scene.ask("missing.example")
    assert answers == {}
    scene.until(lambda: answers)
    assert len(scene.names.asked) == 2


def test_what_is_kept_is_bounded(scene, monkeypatch):
    monkeypatch.setattr(module, "_MOST_KEPT", 3)
    for index in range(5):
        answers = scene.ask(f"name{index}.example")
        scene.until(lambda answers=answers: answers)
    assert [*scene.upstream._known] == ["name2.example", "name3.example", "name4.example"]


# Limits


def test_a_session_with_hanging_names_does_not_stop_another(scene):
    hanging = [f"hanging{index}.example" for index in range(20)]
    scene.names.hang(*hanging)
    stuck = scene.ask(*hanging, session="bad")
    other = scene.ask("example.com", session="good")
    scene.until(lambda: other)
    assert other == {"example.com": FOUND}
    assert stuck == {}
    scene.until(lambda: len(scene.names.asked) == 5)
    assert sum(name.startswith("hanging") for name in scene.names.asked) == 4


def test_a_name_that_waits_behind_hanging_ones_of_one_session_is_looked_up_for_another(scene):
    hanging = [f"hanging{index}.example" for index in range(4)]
    scene.names.hang(*hanging)
    first = scene.ask(*hanging, "example.com", session="bad")
    other = scene.ask("example.com", session="good")
    scene.until(lambda: other)
    scene.until(lambda: first)
    assert first == {"example.com": FOUND}


def test_sessions_take_turns(scene):
    every = [f"{session}{index}.example" for session in "ab" for index in range(4)]
    scene.names.hang(*every)
    scene.ask(*every[:4], session="a")
    scene.ask(*every[4:], session="b")
    scene.until(lambda: len(scene.names.asked) == len(every))
    waiting = {
        session: scene.ask(*[f"{session}x{index}.example" for index in range(8)], session=session) for session in "cd"
    }
    scene.names.release(every[0])
    scene.until(lambda: all(len(answers) == 8 for answers in waiting.values()))
    order = [name[0] for name in scene.names.asked[8:]]
    assert order[:4] in (["c", "d", "c", "d"], ["d", "c", "d", "c"])


def test_a_session_may_have_only_so_many_waiting(scene):
    names = [f"hanging{index}.example" for index in range(4 + module._MOST_WAITING + 3)]
    scene.names.hang(*names)
    answers = scene.ask(*names)
    assert [kind(answer) for answer in answers.values()] == ["busy"] * 3
    assert set(answers) == set(names[-3:])


def test_an_answer_comes_within_the_deadline(impatient):
    scene = Scene()
    scene.names.hang("slow.example")
    began = time.monotonic()
    answers = scene.ask("slow.example")
    scene.until(lambda: answers)
    assert kind(answers["slow.example"]) == "timeout"
    assert 0.04 < time.monotonic() - began < 8
    # Later the lookup ends after all, and its answer is of use.
    scene.names.release()
    scene.until(lambda: scene.upstream.cached("slow.example") == FOUND)
    scene.close()


def test_each_who_asks_has_the_whole_time(impatient):
    scene = Scene()
    scene.names.hang("slow.example")
    first = scene.ask("slow.example")
    scene.loop.call_later(0.03, scene.loop.stop)
    scene.loop.run()
    asked = time.monotonic()
    second = scene.ask("slow.example")
    scene.until(lambda: second)
    assert time.monotonic() - asked >= 0.05, "and not only until the time of the first is over"
    assert kind(first["slow.example"]) == kind(second["slow.example"]) == "timeout"
    scene.close()


def test_threads_that_do_not_come_back_are_replaced_up_to_a_limit(impatient, monkeypatch):
    scene = Scene(workers=2, per_session=2)
    hanging = [f"hanging{index}.example" for index in range(40)]
    scene.names.hang(*hanging)
    answers = {}
    for index, name in enumerate(hanging):
        answers |= scene.ask(name, session=index)
    scene.until(lambda: scene.upstream._workers == 8)
    other = scene.ask("example.com", session="good")
    scene.until(lambda: other)
    assert kind(other["example.com"]) == "timeout"
    assert scene.upstream._workers == 8
    scene.names.release()
    scene.until(lambda: scene.upstream._workers == 2)
    monkeypatch.setattr(module, "PATIENCE", 30.0)
    other = scene.ask("example.com", session="good")
    scene.until(lambda: other)
    assert other["example.com"] == FOUND
    scene.close()


def test_nothing_is_kept_of_a_session_whose_lookups_have_ended(scene):
    answers = scene.ask("example.com", "missing.example", *[f"n{index}.example" for index in range(10)])
    scene.until(lambda: len(answers) == 12)
    scene.until(lambda: not scene.upstream._sessions)
    assert scene.upstream._lookups == {}
    assert scene.upstream._turns == {}


def test_without_threads_it_says_so(scene, monkeypatch):
    def refuse(function, args):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module._thread, "start_new_thread", refuse)
    answers = scene.ask("example.com")
    scene.until(lambda: answers)
    assert kind(answers["example.com"]) == "busy"
    monkeypatch.undo()
    answers = scene.ask("example.com")
    scene.until(lambda: answers)
    assert answers["example.com"] == FOUND


def test_after_closing_threads_end_and_nobody_is_told():
    scene = Scene()
    scene.names.hang("slow.example")
    answers = scene.ask("slow.example", "example.com")
    scene.until(lambda: answers)
    scene.upstream.close()
    scene.names.release()
    scene.until(lambda: scene.upstream._workers == 0)
    assert answers == {"example.com": FOUND}
    scene.loop.shut()


# The host's resolver


def test_a_real_lookup():
    found = look_up("localhost")
    assert found
    assert set(found) <= {socket.inet_aton("127.0.0.1"), socket.inet_pton(socket.AF_INET6, "::1")}


def test_a_real_failure():
    with pytest.raises(UpstreamError) as caught:
        look_up("does-not-exist.invalid")
    assert caught.value.kind == "unresolvable"
    with pytest.raises(UpstreamError):
        look_up("nön-ascii")
    with pytest.raises(UpstreamError):
        look_up("nul\0.example")


def test_addresses_are_packed_bounded_and_each_there_once(monkeypatch):
    def answer(host, port, family, kind):
        assert host == b"many.example"
        one = [
            (socket.AF_INET6, 1, 6, "", ("2001:db8::1", 0, 0, 0)),
            (socket.AF_INET, 1, 6, "", ("192.0.2.1", 0)),
            (socket.AF_INET, 1, 6, "", ("192.0.2.1", 0)),
        ]
        return one + [(socket.AF_INET, 1, 6, "", (f"192.0.2.{index}", 0)) for index in range(2, 200)]

    monkeypatch.setattr(module._socket, "getaddrinfo", answer)
    found = look_up("many.example")
    assert found[:2] == [socket.inet_pton(socket.AF_INET6, "2001:db8::1"), bytes([192, 0, 2, 1])]
    assert len(found) == len({*found}) == module._MOST_ADDRESSES - 1


def test_looking_up_imports_no_codec():
    """`encodings.idna` alone takes longer than a whole launch may."""
    code = (
        "import sys; from osmoda.egress.upstream import look_up; look_up('localhost');"
        "print(*[m for m in ('encodings.idna', 'socket', 'threading', 're') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    baseline = subprocess.run(
        [sys.executable, "-c", "import sys; print(*[m for m in ('threading', 're') if m in sys.modules])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == baseline.stdout


@pytest.mark.parametrize(
    ("address", "own"),
    [("127.0.0.1", True), ("::1", True), ("192.0.2.200", False), ("2001:db8:ffff::1", False)],
)
def test_an_address_of_this_host_is_known_without_a_packet(address, own):
    from osmoda.egress.dial import is_of_this_host

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    assert is_of_this_host(socket.inet_pton(family, address)) is own
