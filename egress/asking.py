"""Connections to unlisted names, held until somebody decides, or a deadline does (profile key `network.ask`).

What a sandbox can have asked is bounded, since a person has to read it: 32 questions at a time and 64 a minute, each
once for all connections that wait for it, and none again within ten seconds of a refusal.
"""

from __future__ import annotations

import posix
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from osmoda.egress.loop import Timer
    from osmoda.egress.session import Session

SECONDS = 60.0
"""How long a connection is held; then it is refused."""

MOST_OPEN = 32
MOST_TEXT = 4096
"""Open questions of one sandbox, and characters of their names together."""

MOST_NEW = 64
"""Questions that one sandbox may open in a minute: whoever hangs up at once could ask without end."""

HOW = ("once", "run")
"""What an approval is for: the connections that are held now, or all to that name and port while the sandbox runs."""

_FOR_THIS_RUN = "approved for this run"
_QUIET = 10.0  # seconds
_MOST_QUIET = 256
_last = 0


class Question:
    """May this sandbox connect to `name` at `port`? `id` is the question's among all of this user's gateways."""

    __slots__ = ("_answer", "_desk", "_timer", "_waiting", "asked", "id", "name", "port")

    def __init__(self, desk: Desk, name: str, port: int) -> None:
        global _last
        _last += 1
        self.id = f"{posix.getpid()}-{_last}"
        self.name = name
        self.port = port
        self.asked = time.time()
        self._desk = desk
        self._waiting: list[Callable[[bool, str], None]] = []
        self._answer: tuple[bool, str] | None = None
        self._timer: Timer | None = None

    @property
    def waiting(self) -> int:
        """How many connections wait for the answer."""
        return len(self._waiting)

    def withdraw(self, done: Callable[[bool, str], None]) -> None:
        """Whoever waited with `done` waits no more, and will not be called; with the last one the question goes."""
        if done in self._waiting:
            self._waiting.remove(done)
            if not self._waiting and self._answer is None:
                self._desk.close(self, "withdrawn", False, "")

    def _join(self, done: Callable[[bool, str], None]) -> None:
        self._waiting.append(done)
        if self._answer is not None:
            self._desk.session.loop.call_soon(self._tell_one)

    def _settle(self, allowed: bool, reason: str) -> None:
        self._answer = allowed, reason
        if self._timer is not None:
            self._timer.cancel()
        for _ in self._waiting:
            # Each in a call of its own: what one does with the answer is not to befall the others.
            self._desk.session.loop.call_soon(self._tell_one)

    def _tell_one(self) -> None:
        if self._waiting and self._answer is not None:
            self._waiting.pop(0)(*self._answer)


class Desk:
    """The questions of one sandbox; `Session.desk`, made with its first question."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.open: dict[tuple[str, int], Question] = {}
        self._refused: dict[tuple[str, int], float] = {}
        self._minute = session.loop.now
        self._new = 0

    def ask(self, name: str, port: int, done: Callable[[bool, str], None]) -> Question:
        """As the function `ask`."""
        key = name, port
        question = self.open.get(key)
        if question is None:
            question = Question(self, name, port)
            answer = self._answer_at_once(key)
            if answer is not None:
                question._settle(*answer)
            else:
                self._open(key, question)
        question._join(done)
        return question

    def _answer_at_once(self, key: tuple[str, int]) -> tuple[bool, str] | None:
        name, port = key
        policy = self.session.policy
        if not policy.ask or policy.denied_explicitly(name, port):
            return False, policy.decide(name, port).reason
        if key in self.session.approved:
            return True, _FOR_THIS_RUN
        if self._refused.get(key, 0.0) > self.session.loop.now:
            return False, f"{name}:{port} was asked about and refused a moment ago"
        if len(self.open) >= MOST_OPEN or sum([len(asked) for asked, _ in self.open]) + len(name) > MOST_TEXT:
            return False, f"{name}:{port} is not listed, and there are too many open questions to ask about it"
        if self.session.loop.now >= self._minute + 60:
            self._minute, self._new = self.session.loop.now, 0
        if self._new >= MOST_NEW:
            return False, f"{name}:{port} is not listed, and too much was asked in the last minute to ask about it"
        return None

    def _open(self, key: tuple[str, int], question: Question) -> None:
        self.open[key] = question
        self._new += 1
        question._timer = self.session.loop.call_later(
            SECONDS, lambda: self.close(question, "expired", False, f"nobody approved it within {SECONDS:g} s")
        )
        self._record(question, "held", f"osmoda-egress approve {question.id}")

    def close(self, question: Question, action: str, allowed: bool, reason: str) -> None:
        """Answer a question: the connections that wait for it go on, or are refused for `reason`."""
        del self.open[question.name, question.port]
        self._record(question, action, reason)
        question._settle(allowed, reason)

    def approve(self, question: Question, how: str) -> None:
        """Let through what waits, and with `how` "run" what comes later."""
        if how == "run":
            self.session.approve(question.name, question.port)
        self.close(question, "approved", True, _FOR_THIS_RUN if how == "run" else "approved once")

    def refuse(self, question: Question) -> None:
        """Refuse what waits, and what is tried again at once."""
        now = self.session.loop.now
        if len(self._refused) >= _MOST_QUIET:
            self._refused = {key: until for key, until in self._refused.items() if until > now}
        if len(self._refused) < _MOST_QUIET:
            self._refused[question.name, question.port] = now + _QUIET
        self.close(question, "refused", False, "it was asked about and refused")

    def _record(self, question: Question, action: str, reason: str) -> None:
        # No verdict: the connections that were held get their own records.
        self.session.record(
            event="ask",
            question=question.id,
            name=question.name,
            port=question.port,
            action=action,
            reason=reason,
            rule=self.session.policy.ask_origin,
        )


def ask(session: Session, name: str, port: int, done: Callable[[bool, str], None]) -> Question:
    """Hold a connection to a name that no rule lists: `done(allowed, reason)` is called once, after this has returned.

    What a rule denies, or was approved for this run, is answered without asking anybody. Whoever hangs up meanwhile
    says so with `Question.withdraw`.
    """
    if session.desk is None:
        session.desk = Desk(session)
    return session.desk.ask(name, port, done)


def pending(sessions: Iterable[Session]) -> list[dict[str, object]]:
    """The open questions, the oldest first."""
    ordered = sorted(_open(sessions), key=lambda found: found[1].asked)
    return [
        {
            "id": question.id,
            "sandbox": session.identity,
            "agent": session.agent,
            "profile": session.profile,
            "name": question.name,
            "port": question.port,
            "asked": question.asked,
            "until": question.asked + SECONDS,
            "connections": question.waiting,
        }
        for session, question in ordered
    ]


def decide(sessions: Iterable[Session], identity: str, how: str) -> tuple[Session, Question] | None:
    """Answer the question `identity` with "once", "run" or "refuse"; None when there is no such question (any more)."""
    for session, question in _open(sessions):
        if question.id == identity and session.desk is not None:
            if how in HOW:
                session.desk.approve(question, how)
            else:
                session.desk.refuse(question)
            return session, question
    return None


def _open(sessions: Iterable[Session]) -> list[tuple[Session, Question]]:
    return [
        (session, question) for session in sessions if session.desk for question in tuple(session.desk.open.values())
    ]


def policy_changed(session: Session) -> None:
    """Answer what the session's new policy answers."""
    desk = session.desk
    if desk is None:
        return
    for question in tuple(desk.open.values()):
        verdict = session.policy.decide(question.name, question.port)
        if verdict.allowed:
            desk.close(question, "approved", True, f"{verdict.origin} allows it")
        elif not session.policy.ask or session.policy.denied_explicitly(question.name, question.port):
            desk.close(question, "refused", False, verdict.reason)


def session_ended(session: Session) -> None:
    """Nobody waits any more."""
    desk = session.desk
    if desk is None:
        return
    for question in tuple(desk.open.values()):
        desk.close(question, "withdrawn", False, "the sandbox has ended")
