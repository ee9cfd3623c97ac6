"""Limits by cgroup v2 on a host that systemd has booted, as root and as an ordinary user with a manager of their own.

Runs inside the virtual machine (see README.md), as root, in a service of the system's manager. Prints a line for each
check; the exit status is 1 when one fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

COMMAND = "/opt/osmoda/bin/osmoda-sandbox"
WATCH = "/opt/osmoda/bin/osmoda-watch"
PYTHON = "/usr/bin/python3"
UID = 1000
CGROUPS = Path("/sys/fs/cgroup")
PATIENCE = 60.0  # seconds: everything is emulated
M = 1 << 20

PROFILES = {
    "limits": 'tier = 2\n[process]\nmemory = "64M"\ncpu = 0.25\npids = 30',
    "degraded": 'tier = 2\ndegrade = ["memory"]\n[process]\nmemory = "64M"',
    "unit": 'tier = 1\n[filesystem]\nworkspace = "none"',
    # In the other tiers the rlimit refuses first.
    "pids": "tier = 0\n[process]\npids = 8",
}
ALLOCATE = "print(len(b'x' * (int(__import__('sys').argv[1]) << 20)))"
FORK = "i=0; while [ $i -lt 20 ]; do sleep 60 & i=$((i+1)); done; wait"
SHARE = """
import time
wall, own = time.monotonic(), time.process_time()
while time.monotonic() < wall + 4:
    pass
print((time.process_time() - own) / (time.monotonic() - wall))
"""


class World:
    """Somebody to run things as."""

    def __init__(self, name: str, uid: int, environment: dict[str, str]) -> None:
        self.name = name
        self.uid = uid
        self.environment = {"PATH": os.environ["PATH"], **environment}

    def start(self, *argv: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            argv,
            user=self.uid,
            group=self.uid,
            extra_groups=[],
            env=self.environment | environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *argv: str, **environment: str) -> tuple[int, str, str]:
        with self.start(*argv, **environment) as process:
            output, errors = process.communicate(timeout=PATIENCE * 2)
        return process.returncode, output, errors

    def sandbox(self, profile: str, *argv: str, **environment: str) -> tuple[int, str, str]:
        return self.run(COMMAND, "run", "--json", "--profile", f"/profiles/{profile}.toml", "--", *argv, **environment)

    def units(self) -> list[str]:
        """The scopes that this world's manager has for osmoda."""
        manager = ["--user"] if self.uid else []
        _, output, _ = self.run(
            "systemctl", *manager, "list-units", "--all", "--plain", "--no-legend", "--no-pager", "osmoda-*.scope"
        )
        return [line.split()[0] for line in output.splitlines()]


ROOT = World("root", 0, {})
# Not the home on the shared root: a folder that a user makes there belongs to root.
HOME = Path("/run/home-of-agent")
USER = World("user", UID, {"HOME": str(HOME), "XDG_RUNTIME_DIR": f"/run/user/{UID}"})


def groups() -> list[Path]:
    """Every group of osmoda's."""
    return sorted(path for path in CGROUPS.rglob("osmoda-*") if path.is_dir() and path.suffix != ".service")


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for it; what it gave."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, f"did not come about: {what}"
        time.sleep(0.05)
    return found


def outcome(errors: str) -> dict[str, Any]:
    """The line of --json."""
    found: dict[str, Any] = json.loads(errors.strip().splitlines()[-1])
    return found


def nothing_is_left(world: World) -> None:
    until(lambda: not groups() and not world.units(), f"the end of {groups()}, {world.units()}")
    names = {Path(path).read_text() for path in map(str, Path("/proc").glob("[0-9]*/comm")) if os.path.exists(path)}
    assert not any(name.startswith("osmoda-") for name in names), names


@contextlib.contextmanager
def running(world: World, profile: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A sandbox that waits: its monitor, and its group when the command is in it."""
    argv = (COMMAND, "run", "--profile", f"/profiles/{profile}.toml", "--", "sleep", "1000")
    with world.start(*argv) as monitor:
        try:
            name = f"osmoda-{monitor.pid:x}-1"
            group = until(
                lambda: next((path for path in groups() if path.name == name and commands(path) == 2), None),
                f"the group {name} with its command",
            )
            yield monitor, group
        finally:
            monitor.kill()


def commands(group: Path) -> int:
    with contextlib.suppress(OSError):
        return len((group / "cgroup.procs").read_text().split())
    return 0


# --- the checks ---


def below_the_limits_all_is_well(world: World) -> None:
    code, output, errors = world.sandbox("limits", PYTHON, "-c", ALLOCATE, "16")
    assert (code, output) == (0, f"{16 * M}\n"), (code, output, errors)
    assert 16 * M < outcome(errors)["peak_memory_bytes"] <= 64 * M
    nothing_is_left(world)


def memory_beyond_the_limit_is_a_kill(world: World) -> None:
    code, output, errors = world.sandbox("limits", PYTHON, "-c", ALLOCATE, "256")
    assert (code, output) == (137, ""), (code, output, errors)
    (denial,) = outcome(errors)["denials"]
    assert (denial["layer"], denial["operation"]) == ("cgroup", "memory"), denial
    assert denial["count"] == 1, denial
    nothing_is_left(world)


def processes_beyond_the_limit_are_refused(world: World) -> None:
    code, _, errors = world.sandbox("pids", "sh", "-c", FORK)
    assert code != 0
    assert "fork" in errors.lower(), errors
    nothing_is_left(world)


def processor_time_beyond_the_limit_is_withheld(world: World) -> None:
    code, output, errors = world.sandbox("limits", PYTHON, "-c", SHARE)
    assert code == 0, errors
    assert 0.1 < float(output) < 0.4, output
    nothing_is_left(world)


def limits_are_in_the_kernel_and_the_monitor_in_a_leaf_of_its_own_scope(world: World) -> None:
    with running(world, "limits") as (monitor, group):
        written = {name: (group / name).read_text().strip() for name in ("memory.max", "memory.swap.max", "cpu.max")}
        assert written == {"memory.max": str(64 * M), "memory.swap.max": "0", "cpu.max": "25000 100000"}, written
        assert ((group / "pids.max").read_text(), (group / "memory.oom.group").read_text()) == ("31\n", "1\n")
        scope = group.parent
        assert world.units() == [scope.name], (world.units(), scope)
        assert (scope / "cgroup.procs").read_text() == ""
        leaf = Path(f"/proc/{monitor.pid}/cgroup").read_text().strip().removeprefix("0::")
        assert leaf == f"/{scope.relative_to(CGROUPS)}/osmoda-monitor-{monitor.pid:x}", leaf
        threads = os.listdir(f"/proc/{monitor.pid}/task")
        assert threads == [str(monitor.pid)], threads
        monitor.send_signal(signal.SIGTERM)
        assert monitor.wait(PATIENCE) == 128 + signal.SIGTERM
    nothing_is_left(world)


def nothing_is_left_of_a_monitor_that_was_killed(world: World) -> None:
    with running(world, "limits") as (monitor, _):
        monitor.kill()
        monitor.wait()
        nothing_is_left(world)


def a_delegated_service_is_used_in_place(world: World) -> None:
    service = CGROUPS / "system.slice/delegated.service"
    # With a subgroup another process may be beside the monitor: systemd has put both into a leaf.
    for extra, command in (([], "exec {}"), (["-p", "DelegateSubgroup=main"], "{} & wait")):
        run = f"{COMMAND} run --profile /profiles/limits.toml -- sleep 1000"
        start = ["systemd-run", "--quiet", "--collect", "--unit", service.name, "--uid", str(world.uid)]
        start += [f"--setenv=HOME={world.environment['HOME']}"] if world.uid else []
        code, _, errors = ROOT.run(*start, "-p", "Delegate=yes", *extra, "sh", "-c", command.format(run))
        assert code == 0, errors
        try:
            made = until(lambda: [path for path in groups() if path.name.endswith("-1")], f"a group in {service}")
            assert [path.parent for path in made] == [service], made
            until(lambda group=made[0]: commands(group) == 2, f"the command in {made}")
            assert ROOT.units() == USER.units() == []
        finally:
            code, _, errors = ROOT.run("systemctl", "stop", service.name, "osmoda-*.scope")
        assert code == 0, errors
        nothing_is_left(world)


def without_a_manager_the_launch_stops_unless_the_profile_degrades(world: World) -> None:
    nowhere = {"XDG_RUNTIME_DIR": "/nowhere"}
    code, _, errors = world.sandbox("limits", "true", **nowhere)
    assert code == 125
    assert "/profiles/limits.toml:4" in errors, errors
    assert "nor can systemd be asked" in errors, errors
    code, _, errors = world.sandbox("degraded", "true", **nowhere)
    assert code == 0, errors
    nothing_is_left(world)


def a_manager_that_does_not_answer_stops_the_launch_unless_the_profile_degrades(world: World) -> None:
    _, output, _ = ROOT.run("systemctl", "show", f"user@{world.uid}.service", "-p", "MainPID", "--value")
    manager = int(output)
    os.kill(manager, signal.SIGSTOP)
    try:
        code, _, errors = world.sandbox("limits", "true")
        assert code == 125
        assert "did not answer within 10 seconds" in errors, errors
        assert "/profiles/limits.toml:4" in errors, errors
        code, _, errors = world.sandbox("degraded", "true")
        assert code == 0, errors
    finally:
        os.kill(manager, signal.SIGCONT)
    # What it was asked for meanwhile, it finds the process of gone.
    nothing_is_left(world)
    # And the degraded plan was for that launch only.
    code, _, errors = world.sandbox("degraded", PYTHON, "-c", ALLOCATE, "256")
    assert code == 137, (code, errors)
    nothing_is_left(world)


UNIT = """[Service]
Type=oneshot
MemoryMax=64M
ExecStart={python} -c "{allocate}" {megabytes}
[X-Osmoda]
Profile=/profiles/unit.toml
"""


def a_unit_that_systemd_runs_is_held_to_its_limit(world: World) -> None:
    file = Path("/etc/systemd/system/limited.service")
    for megabytes, code in ((16, 0), (256, 1)):
        file.write_text(UNIT.format(python=PYTHON, allocate=ALLOCATE, megabytes=megabytes))
        done, _, errors = world.run(WATCH, "start", "limited")
        assert done == code, (megabytes, done, errors)
    _, output, _ = world.run("systemctl", "show", "limited.service", "-p", "Result", "-p", "ExecMainStatus", "--value")
    assert sorted(output.split()) in (["9", "oom-kill"], ["9", "signal"]), output
    world.run(WATCH, "systemd", "remove", "limited")
    file.unlink()
    nothing_is_left(world)


BOTH = (
    below_the_limits_all_is_well,
    memory_beyond_the_limit_is_a_kill,
    processes_beyond_the_limit_are_refused,
    processor_time_beyond_the_limit_is_withheld,
    limits_are_in_the_kernel_and_the_monitor_in_a_leaf_of_its_own_scope,
    nothing_is_left_of_a_monitor_that_was_killed,
    a_delegated_service_is_used_in_place,
)
ROOTS = (a_unit_that_systemd_runs_is_held_to_its_limit,)
USERS = (
    without_a_manager_the_launch_stops_unless_the_profile_degrades,
    a_manager_that_does_not_answer_stops_the_launch_unless_the_profile_degrades,
)


def main() -> int:
    """Run the checks named on the command line, or all."""
    if unknown := {*sys.argv[1:]} - {check.__name__ for check in (*BOTH, *ROOTS, *USERS)}:
        print(f"there is no check {', '.join(sorted(unknown))}")
        return 2
    HOME.mkdir(mode=0o700, exist_ok=True)
    os.chown(HOME, UID, UID)
    profiles = Path("/profiles")
    profiles.mkdir(exist_ok=True)
    for name, text in PROFILES.items():
        (profiles / f"{name}.toml").write_text(f"schema = 1\n{text}\n")
    failed = 0
    for world, checks in ((ROOT, (*BOTH, *ROOTS)), (USER, (*BOTH, *USERS))):
        for check in checks:
            if sys.argv[1:] and check.__name__ not in sys.argv[1:]:
                continue
            try:
                check(world)
            except (AssertionError, OSError, ValueError, subprocess.SubprocessError):
                failed += 1
                print(f"FAILED {world.name}: {check.__name__}", traceback.format_exc(limit=2), sep="\n", flush=True)
            else:
                print(f"ok     {world.name}: {check.__name__}", flush=True)
    print(f"{failed} failed" if failed else "all passed", f"(Linux {os.uname().release})", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
