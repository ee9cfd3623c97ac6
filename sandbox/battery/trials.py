"""Makes attacks, each in a process of its own, and writes one line about each.

The same code runs inside a sandbox, where it must be refused, and outside, where it must not: the control.
"""

from __future__ import annotations

import ast
import posix
import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osmoda.host import syscalls
from osmoda.sandbox.battery.attacks import ATTACKS
from osmoda.sandbox.battery.kernel import Absent, Refused

if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Iterable
    from typing import NoReturn

    from osmoda.sandbox.battery.attacks import Facts
    from osmoda.sandbox.battery.kernel import About
else:
    import _signal

type Task = tuple[str, tuple[Any, ...]]
"""The name of an attack, and arguments for it besides the facts."""

MARK = "osmoda-battery "
"""Begins each line, so that what else is printed where it runs is not taken for an answer."""

_LONGEST = 4000  # bytes of an answer: less than what a pipe takes at once (PIPE_BUF, pipe(7))


@dataclass(frozen=True, slots=True)
class Answer:
    """How an attack went.

    `kind` is "gained" (`text` says what), "refused" (`number` is the errno; `call`, `registers` and `about` as in
    `kernel.Refused`), "absent" (`text` says what is not there), or "failed": then nothing can be said, and `text` tells
    what happened.
    """

    kind: str
    text: str = ""
    number: int = 0
    call: str = ""
    registers: tuple[int, ...] = ()
    about: About = ()


def perform(tasks: Iterable[Task], facts: Facts, write: Callable[[bytes], object]) -> None:
    """Make each attack in turn, and `write` a line for each as soon as it is known."""
    for index, (name, arguments) in enumerate(tasks):
        answer = _apart(name, arguments, facts)
        values = (index, answer.kind, answer.text, answer.number, answer.call, answer.registers, answer.about)
        write(f"{MARK}{values!a}\n".encode())


def answers(output: bytes) -> dict[int, Answer]:
    """What `perform` wrote, by the index of the task. Lines that are not its own, and such as are cut, are left out."""
    found: dict[int, Answer] = {}
    for line in output.decode("ascii", "replace").splitlines():
        _, mark, values = line.partition(MARK)
        if mark:
            try:
                index, *rest = ast.literal_eval(values)
                found[index] = Answer(*rest)
            except (ValueError, SyntaxError, TypeError):
                continue  # no answer: the task counts as one of which nothing is known
    return found


def _apart(name: str, arguments: tuple[Any, ...], facts: Facts) -> Answer:
    """One attack in a child: what it does to its process ends with it."""
    attack = ATTACKS[name]
    try:
        reading, writing = posix.pipe()
        pid = posix.fork()
    except OSError as error:
        return Answer("failed", f"no process could be made for it: {error.strerror}")
    if pid == 0:
        _in_child(name, arguments, facts, writing)
    posix.close(writing)
    try:
        said = _hear(reading, attack.seconds)
    finally:
        posix.close(reading)
        _end(pid)
        _, status = posix.waitpid(pid, 0)
    if said is None:
        return Answer("failed", f"it did not end within {attack.seconds:g} s")
    if not said:
        code = posix.waitstatus_to_exitcode(status)
        return Answer("failed", f"it ended by signal {-code}" if code < 0 else f"it ended with {code} and no answer")
    return Answer(*ast.literal_eval(said.decode("ascii")))


def _end(pid: int) -> None:
    """End an attack's process, and its children unless they have left its group."""
    posix.kill(pid, 9)
    try:
        posix.killpg(pid, 9)
    except ProcessLookupError:
        return  # it had none, or was killed before it made a group


def _hear(fd: int, seconds: float) -> bytes | None:
    """All that is written to `fd` until its end; None when that does not come in time."""
    said, until = b"", time.monotonic() + seconds
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        if not poll.poll(max(until - time.monotonic(), 0.0) * 1000):
            return said or None
        more = posix.read(fd, 65536)
        if not more:
            return said
        said += more


def _in_child(name: str, arguments: tuple[Any, ...], facts: Facts, report: int) -> NoReturn:
    try:
        # A session of its own, so that all of it can be ended, and that it may have a terminal.
        posix.setsid()
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
        syscalls.prctl_set_name(name.encode())
        try:
            values: tuple[Any, ...] = ("gained", ATTACKS[name].action(facts, *arguments))
        except Refused as refused:
            values = ("refused", str(refused), refused.number, refused.call, refused.registers, refused.about)
        except Absent as absent:
            values = ("absent", str(absent))
        except OSError as error:
            values = ("failed", f"{error.strerror} ({error.errno})")
        except Exception as error:
            # An attack that is itself at fault has shown nothing, and says so.
            values = ("failed", f"{type(error).__name__}: {error}")
        line = ascii(values).encode()
        if len(line) > _LONGEST:
            line = ascii((values[0], str(values[1])[:200], *values[2:5])).encode()
        posix.write(report, line)
    finally:
        posix._exit(0)
