"""A launch where systemd could give a scope and does not: no limit is dropped that the profile does not name.

The launch, the kernel and the sandbox are real; of the host only what is said about its cgroups is made up. Scopes of a
real systemd are in tests/vm.
"""

from __future__ import annotations

import pytest

# The command on a v2 host with an ordinary user's manager, whose bus is gone when it is needed.
RUN = """
import sys
from osmoda.host import cgroup, delegation
cgroup._own_groups = lambda: ("/user.slice/session-1.scope", {})
delegation.place = lambda *group: ""
delegation.offered = lambda mount: ["memory", "cpu", "pids"]
delegation.manager_bus = lambda: "/nonexistent/bus"
from osmoda.sandbox import entry
sys.argv[0] = "osmoda-sandbox"
sys.exit(entry.main())
"""


@pytest.fixture
def profile(world):
    def write(text):
        path = world.tmp / "agent.toml"
        path.write_text(f"schema = 1\ntier = 2\n{text}\n")
        return str(path)

    return write


@pytest.mark.parametrize("limit", ['memory = "64M"', "cpu = 0.5"])
def test_the_launch_stops_at_the_line_that_asks_for_the_limit(world, profile, limit):
    path = profile(f"[process]\n{limit}")
    result = world.python(RUN, "run", "--profile", path, "--", "echo", "ran")
    assert (result.returncode, result.stdout) == (125, "")
    name = limit.partition(" ")[0]
    assert result.stderr == (
        f"osmoda-sandbox: {path}:4: process.{name} cannot be enforced: systemd has not started a scope for the limits: "
        "connect /nonexistent/bus: No such file or directory; the launch stops, unless the profile says "
        f'degrade = ["{name}"]\n'
    )


def test_a_profile_that_degrades_one_limit_still_stops_for_the_other(world, profile):
    path = profile('degrade = ["memory"]\n[process]\nmemory = "64M"\ncpu = 0.5')
    result = world.python(RUN, "run", "--profile", path, "--", "echo", "ran")
    assert (result.returncode, result.stdout) == (125, "")
    assert f"{path}:6: process.cpu cannot be enforced" in result.stderr


def test_a_profile_that_degrades_the_limit_runs_without_and_only_this_once(world, profile):
    path = profile('degrade = ["memory"]\n[process]\nmemory = "64M"')
    for _ in range(2):
        result = world.python(RUN, "run", "--profile", path, "--", "echo", "ran")
        assert (result.returncode, result.stdout) == (0, "ran\n")
        assert result.stderr == (
            f"osmoda-sandbox: without the layer memory, as {path}:3 allows: process.memory cannot be enforced: "
            "systemd has not started a scope for the limits: connect /nonexistent/bus: No such file or directory\n"
        )
    # What was compiled without the limit is not used where the host offers it.
    result = world.python(RUN, "run", "--dry-run", "--profile", path, "--", "echo", "ran")
    assert "64M" in result.stdout


def test_without_a_limit_nobody_is_asked(world, profile):
    result = world.python(RUN, "run", "--profile", profile(""), "--", "echo", "ran")
    assert (result.returncode, result.stdout, result.stderr) == (0, "ran\n", "")
