"""How a unit under systemd is at one moment, as `snapshots` has it of the own engine; its log out of the journal."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

from osmoda.host import features
from osmoda.sandbox import processes
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.errors import SandboxError
from osmoda.supervisor.confining.confinement import confine
from osmoda.supervisor.errors import SupervisorError
from osmoda.supervisor.lifecycle import state_words
from osmoda.supervisor.units.files import GENERATED, systemd_path
from osmoda.supervisor.units.loading import Loader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from osmoda.sandbox.processes import Running
    from osmoda.sandbox.profile import Profile

_STALE = "its files have changed since it was started: until it is restarted its plan is the one from before"
_EXITED, _KILLED, _DUMPED = 1, 2, 3  # CLD_* of waitid(2)
_JOBS = {
    "canceled": "another job has taken the place of this one",
    "timeout": "the job took too long",
    "dependency": "a unit that it requires did not start",
    "invalid": "it cannot do this",
    "assert": "an assertion of it (Assert…=) does not hold",
    "once": "it was started before, and only starts once",
}


def of(name: str, shown: Mapping[str, Any], running: Sequence[Running], *, brief: bool) -> dict[str, Any]:
    """One unit by its properties; its sandbox is one of those that are `running`. `brief` leaves its plan out."""
    code, number = ended(shown)
    pid = int(shown.get("MainPID") or 0)
    files = [str(shown.get("FragmentPath") or "")]
    files += [str(path) for path in shown.get("DropInPaths") or () if not str(path).endswith(f"/{GENERATED}")]
    found: dict[str, Any] = {
        "unit": name,
        "description": str(shown.get("Description") or ""),
        "files": [path for path in files if path],
        "state": str(shown["ActiveState"]),
        "sub": str(shown["SubState"]),
        "result": str(shown.get("Result") or "success"),
        "since": int(shown.get("StateChangeTimestamp") or 0) / 1e6,
        "pid": pid,
        "exit_code": code,
        "exit_signal": number,
        "restarts": int(shown.get("NRestarts") or 0),
        "says": str(shown.get("StatusText") or ""),
        "problem": "",
        "health": "unchecked",
        "health_problem": "",
        "group": "",
        "sandbox": "",
        "denials": [],
        "enabled": "yes" if str(shown.get("UnitFileState") or "").startswith("enabled") else "no",
    }
    if found["result"] != "success":
        found["problem"] = state_words.reason(found["result"], code, number)
    if not name.endswith(".service"):
        return found
    # The name of a sandbox begins with the pid of its monitor: that is the process that systemd has started.
    named = [one for one in running if pid and one.identity.startswith(f"{pid:x}-")]
    one = next(filter(processes.is_genuine, named), None)
    try:
        unit = Loader(systemd_path()).load(name)
        confined = confine(unit)
        profile = confined.profile
        found["notes"] = []
        if pid and one is None and profile.tier > 0:
            # What its files say is not what it runs under: systemd has started it without its drop-in, or does so now.
            if found["state"] == "active" and not _is_wrapper(pid):
                found["problem"] = f"it runs outside of any sandbox: `osmoda-watch restart {name}` gives it one"
            return found
        limits = {"memory": profile.process.memory, "cpu": profile.process.cpu}
        tier = one.tier if one is not None else profile.tier
        found |= {"tier": tier, "profile": confined.file, "limits": limits, "plan": ""}
        if one is not None and (tier != profile.tier or _changed_since([*unit.files, *_files(profile)], one.age)):
            found["notes"] = [_STALE]
        elif not brief:
            found["plan"] = compile_profile(profile, features.probe()).fingerprint().hex()
    except (SupervisorError, SandboxError) as error:
        found["problem"] = found["problem"] or str(error)
    if one is not None:
        found |= {"sandbox": one.identity, "memory": one.memory, "tasks": one.processes, "cpu_time": one.cpu_time}
        found["pid"] = one.payload or pid
    return found


def _files(profile: Profile) -> list[str]:
    return [path for path, _ in profile.files if os.path.isabs(path)]


def _changed_since(files: Sequence[str], age: float) -> bool:
    """Whether one of `files` was written, or put in its place, since so many seconds; one that is gone was."""
    began = time.time() - age
    try:
        # A file that is renamed or copied with its times into place has an old time of modification.
        return any(max(status.st_mtime, status.st_ctime) >= began for status in map(os.stat, files))
    except OSError:
        return True


def _is_wrapper(pid: int) -> bool:
    """Whether it is osmoda's own process beside an agent, whose sandbox has just ended, or is about to be built."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return True  # it has ended
    return any(before.endswith(b"/osmoda-watch") and word == b"exec" for before, word in itertools.pairwise(words))


def ended(shown: Mapping[str, Any]) -> tuple[int, int]:
    """The exit code and the signal that a unit's program has ended with; both 0 where it has not."""
    code, status = int(shown.get("ExecMainCode") or 0), int(shown.get("ExecMainStatus") or 0)
    if code in (_KILLED, _DUMPED):
        return 0, status
    return (status if code == _EXITED else 0), 0


def why(job: str, shown: Mapping[str, Any]) -> str:
    """Why a job has not done what was asked."""
    if job != "failed":
        return _JOBS.get(job, f"systemd says: {job}")
    result = str(shown.get("Result") or "")
    if result in ("", "success"):
        return "it has failed; `osmoda-watch logs` may say why"
    return state_words.reason(result, *ended(shown))


def log(
    units: Sequence[str], *, last: int | None, since: float = 0.0, follow: bool = False
) -> Iterator[dict[str, Any]]:
    """Lines of units out of the journal, as `log_view` has them: `last` ones, since a moment, and those to come.

    Raises SupervisorError.
    """
    kind = "--unit" if os.geteuid() == 0 else "--user-unit"
    command = ["journalctl", "--output=json", "--no-pager", "--quiet", *(f"{kind}={name}" for name in units)]
    if last is not None:
        command.append(f"--lines={last}")
    if since:
        command.append(f"--since=@{since:.6f}")
    if follow:
        command.append("--follow")
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise SupervisorError(f"journalctl: {error.strerror}") from None
    assert process.stdout is not None
    try:
        for text in process.stdout:
            yield line(json.loads(text))
        if process.wait() != 0:
            raise SupervisorError(f"journalctl has failed with status {process.returncode}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def line(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of the journal (systemd.journal-fields(7))."""
    text = entry.get("MESSAGE") or ""
    if isinstance(text, list):  # bytes that are no UTF-8
        text = bytes(text).decode("utf-8", "backslashreplace")
    # A program can be called systemd, too; but what it prints comes by another way than what a manager logs.
    of_systemd = entry.get("_PID") == "1" or (entry.get("_COMM") == "systemd" and entry.get("_TRANSPORT") == "journal")
    unit = entry.get("UNIT") or entry.get("USER_UNIT") if of_systemd else None
    return {
        "time": int(entry["__REALTIME_TIMESTAMP"]) / 1e6,
        "unit": unit or entry.get("_SYSTEMD_USER_UNIT") or entry.get("_SYSTEMD_UNIT") or "",
        "stream": "systemd" if of_systemd else "stdout",
        "level": int(entry.get("PRIORITY") or 6),
        "pid": 0 if of_systemd else int(entry.get("_PID") or 0),
        "text": str(text),
    }
