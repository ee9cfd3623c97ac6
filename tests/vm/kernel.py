"""The kernel lane: tests under a Debian kernel, on this host's own file system."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.vm import supplies
from tests.vm.machine import Machine

REPOSITORY = Path(__file__).resolve().parents[2]
INSIDE = Path(__file__).with_name("inside.sh")
MOUNTED = "/run/osmoda"  # where the machine first has the host's file system
SHARE = "local,path=/,mount_tag=osmoda,security_model=none,readonly=on,multidevs=remap"
# Read-only out here and in there, so that what was read once need not be asked for again.
MOUNT = "-t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=512000,access=any,ro"
OPTIONS = ("-p", "no:cacheprovider", "-v", "--tb=short", "--durations=5")

# What this host's kernel may lack (limits by cgroup v2, modules), and attacks on each layer.
SELECTION = (
    "tests/integration/test_cgroup_leaf.py",
    "tests/unit/test_cgroup.py",
    "tests/unit/test_features.py::test_what_is_found_is_what_other_sources_say[root]",
    "tests/unit/test_syscalls.py::test_landlock[user]",
    "tests/attacks/test_resources.py::test_a_bomb_of_processes_under_a_control_group[tier1-root]",
    "tests/attacks/test_resources.py::test_a_bomb_of_memory_under_a_control_group[tier2-root]",
    "tests/attacks/test_resources.py::test_a_bomb_of_processes[user-tier2]",
    "tests/attacks/test_launcher.py::test_the_monitor_is_killed[root-tier1-9]",
    "tests/attacks/test_namespaces_and_capabilities.py::test_leaving_the_control_group[root-tier2]",
    "tests/attacks/test_namespaces_and_capabilities.py::test_new_namespaces[root-tier1]",
    "tests/attacks/test_namespaces_and_capabilities.py::test_changing_mounts[user-tier1]",
    "tests/attacks/test_system_calls.py::test_calls_that_no_program_in_a_sandbox_needs[root-tier2]",
    "tests/attacks/test_directives_inside.py::test_what_a_sandbox_stops_anyway[ProtectKernelModules=yes]",
    "tests/attacks/test_proc_and_memory.py::test_the_hosts_processes_in_proc[user-tier1]",
    "tests/attacks/test_proc_and_memory.py::test_memory_of_a_process_outside[root-tier2]",
    "tests/attacks/test_sockets.py::test_an_abstract_unix_socket[user-tier1]",
    "tests/attacks/test_sockets.py::test_tcp_services_of_the_host_and_beyond[root-tier2]",
    "tests/attacks/test_path_attacks.py::test_a_denied_path_that_does_not_exist_yet[user-tier2-overlay]",
)


def run(where: Path, folder: Path, arguments: Sequence[str], seconds: float) -> int:
    """Run the selection, or pytest with other arguments: its exit status."""
    if status := collect(arguments or SELECTION):
        return status
    image = supplies.kernel(where)
    (folder / "job").write_text(job(arguments or SELECTION))
    machine = Machine(image, folder, devices=("-virtfs", SHARE))
    words = ["sh", f"{MOUNTED}{INSIDE}", MOUNTED, machine.word, f"{folder}/job", str(image.parents[1]), *hidden()]
    program = f"mkdir {MOUNTED} && mount {MOUNT} osmoda {MOUNTED} && exec {shlex.join(words)}"
    return machine.running(program).run(seconds)


def collect(arguments: Sequence[str]) -> int:
    """Have pytest find the tests out here: its status. A typo shows at once, and what it compiles is read inside."""
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q", *arguments]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stdout + done.stderr, flush=True)
    return done.returncode


# Tests of limits are skipped where there is nothing to limit with, and the machine is there for them.
LIMITED = """for controller in cpu memory pids; do
    grep -qw $controller /sys/fs/cgroup/cgroup.controllers || { echo "no cgroup v2 with $controller here"; exit 1; }
done
"""


def job(arguments: Sequence[str]) -> str:
    """A script that runs pytest with this interpreter, and with patience for an emulated processor."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "OSMODA_TEST_PATIENCE": "30",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        **{name: value for name, value in os.environ.items() if name.startswith("OSMODA_")},
    }
    words = ["env", "-i", *(f"{name}={value}" for name, value in environment.items())]
    words += [sys.executable, "-m", "pytest", *OPTIONS, *arguments]
    return f"{LIMITED}cd {shlex.quote(str(REPOSITORY))}\nexec {shlex.join(words)}\n"


def hidden() -> list[str]:
    """Of the repository and the interpreter, what lies in folders that the machine has its own of."""
    paths = {os.path.realpath(path) for path in (REPOSITORY, sys.prefix, sys.base_prefix)}
    found = sorted(path for path in paths if path.startswith(("/tmp/", "/var/tmp/", "/run/")))
    return [path for path in found if not any(path.startswith(f"{other}/") for other in found)]
