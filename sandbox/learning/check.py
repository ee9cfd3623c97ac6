"""The command once more, under the profile that was learned: whether it passes, and if not, what is missing."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.host import features, paths
from osmoda.sandbox import denials, place, profile_file
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.learning import once, streams
from osmoda.sandbox.learning.calls import reporting_filter
from osmoda.sandbox.learning.observing import observing
from osmoda.sandbox.learning.permissive import with_operations
from osmoda.sandbox.operations import confinement
from osmoda.sandbox.operations.observation import Reported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from osmoda.sandbox.denials import Denial
    from osmoda.sandbox.learning.once import Ended, Errand
    from osmoda.sandbox.learning.seen import Seen
    from osmoda.sandbox.learning.streams import Said
    from osmoda.sandbox.monitor import Outcome
    from osmoda.sandbox.plan import Plan


@dataclass(frozen=True, slots=True)
class Checked:
    """A run under the profile. `same`: it ended as the observed one did; `denials` are those which that did not have.

    `output` is the end of what it said.
    """

    status: int
    same: bool
    denials: tuple[Denial, ...]
    output: str

    @property
    def passed(self) -> bool:
        """Whether the profile lets the command pass."""
        return self.same and not self.denials


def check(text: str, name: str, errand: Errand, expected: Outcome, plan: Plan) -> Checked:
    """Run `errand` under the profile `text`, known as `name`; `expected` is how it ended under the observing `plan`.

    Raises SandboxError when the profile cannot be put in force here.
    """
    with streams.again(errand) as (repeated, said):
        ended, checked = _run(text, name, repeated, said)
        words = said.text()
    known = {(one.layer, one.operation, one.object) for one in denials.interpret(expected, plan)}
    found = tuple(
        one
        for one in denials.interpret(ended.outcome, checked)
        if not one.habitual and (one.layer, one.operation, one.object) not in known
    )
    return Checked(ended.outcome.status, ended.outcome.status == expected.status, found, words)


def diagnose(text: str, name: str, errand: Errand) -> Seen:
    """The same with somebody looking on: the kernel does not report files that are not there."""
    with streams.again(errand) as (repeated, said), observing(errand.argv[0]) as (watch, observe):
        _run(text, name, repeated, said, observe)
    return watch.seen


def _run(
    text: str, name: str, errand: Errand, said: Said, observe: Callable[[int], None] | None = None
) -> tuple[Ended, Plan]:
    profile = profile_file.load_text(text, name, os.path.dirname(name) or os.getcwd())
    plan = compile_profile(profile, features.probe())
    work = place.workspace(plan, "")
    run = plan
    if observe is not None:
        # Before the filter that decides, which may refuse to have another one set.
        at = next(i for i, one in enumerate(plan.operations) if isinstance(one, confinement.Seccomp))
        watched = Reported(plan.operations[at].origin, reporting_filter(os.uname().machine))
        run = with_operations(plan, (*plan.operations[:at], watched, *plan.operations[at:]))
    with _layer(plan, work) as layer:
        return once.run(run, errand, work, layer, observe, said.readers), plan


@contextlib.contextmanager
def _layer(plan: Plan, work: bytes) -> Iterator[bytes]:
    """An overlay's layer for this run alone: what is pending in the workspace stays as it is."""
    if plan.workspace != "overlay" or not work:
        yield b""
        return
    folder = tempfile.mkdtemp(prefix="layer-", dir=paths.own_directory("state", "learning"))
    try:
        status = os.stat(work)
        for path in (folder, f"{folder}/upper", f"{folder}/work"):
            if path != folder:
                os.mkdir(path, 0o700)
            if os.geteuid() == 0:
                # The launch maps the layer by its owner, who must be the workspace's.
                os.chown(path, status.st_uid, status.st_gid)
        os.chmod(f"{folder}/upper", status.st_mode & 0o7777)
        yield os.fsencode(folder)
    finally:
        shutil.rmtree(folder, onexc=_open_and_retry)


def _open_and_retry(_: Callable[..., object], path: str, error: BaseException) -> None:
    """An overlay leaves a folder of mode 000, which an ordinary user must open before it can be removed."""
    if not isinstance(error, PermissionError) or os.path.islink(path):
        raise error
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    if os.stat(folder).st_mode & 0o700 == 0o700:
        raise error
    os.chmod(folder, 0o700)
    if os.path.isdir(path):
        shutil.rmtree(path, onexc=_open_and_retry)
    else:
        os.unlink(path)
