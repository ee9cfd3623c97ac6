"""What `make` asks of a machine before anything of ours runs: packages and an interpreter, or one sentence about them.

The package tools are stand-ins that write down what they are asked for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BOOTSTRAP = REPOSITORY / "packaging" / "bootstrap"
TOOLS = ("sh", "sed", "cat", "readlink", "dirname", "gcc", "git", "unshare")
# Those that only the tests' internet needs; here they need not even exist.
INTERNET = ("ip", "nft", "curl", "openssl", "nginx", "ssh", "psql", "postgres", "javac")
# Those of the virtual machines.
MACHINES = ("qemu-system-x86_64", "mmdebstrap", "systemd-nspawn", "busybox", "depmod", "file")


@dataclass
class Machine:
    """A search path of our own making, a home, and a place for the environment."""

    bin: Path
    home: Path
    venv: Path
    log: Path

    def tool(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def has_environment(self) -> None:
        """It was made earlier, which takes its seconds."""
        (self.venv / "bin").mkdir(parents=True)
        interpreter = self.venv / "bin" / "python3"
        interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        interpreter.chmod(0o755)

    def bootstrap(self, purpose: str = "run", **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin), "HOME": str(self.home), "VENV": str(self.venv), **variables}
        argv = ["/bin/sh", str(BOOTSTRAP), purpose]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120, check=False)

    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Root's machine with every tool but an interpreter and node."""
    made = Machine(tmp_path / "bin", tmp_path / "home", tmp_path / "venv", tmp_path / "asked")
    made.bin.mkdir()
    made.home.mkdir()
    for name in TOOLS:
        made.tool(name, f'exec /usr/bin/{name} "$@"')
    for name in (*INTERNET, *MACHINES):
        made.tool(name, "exit 1")
    made.tool("id", "echo 0")
    made.tool("apt-get", f'echo "apt-get $*" >>{made.log}')
    made.tool("apt-cache", "echo '  Candidate: 3.11.2-1'")
    return made


def system_python_suits() -> bool:
    """Whether the directories that are always searched have an interpreter: then the search cannot come up empty."""
    check = "import sys; sys.exit(sys.version_info < (3, 12))"
    names = ("python3", "python3.12", "python3.13", "python3.14", "python3.15")
    found = [Path(folder, name) for folder in ("/usr/bin", "/usr/local/bin") for name in names]
    return any(subprocess.run([p, "-c", check], check=False).returncode == 0 for p in found if p.exists())


needs_empty_search = pytest.mark.skipif(system_python_suits(), reason="this system's own Python is 3.12 or later")


def test_makes_an_environment_of_the_interpreter_it_is_given_and_then_only_looks(machine):
    first = machine.bootstrap(PYTHON=sys.executable)
    assert first.returncode == 0, first.stderr
    assert "» making" in first.stdout
    interpreter = machine.venv / "bin" / "python3"
    before = interpreter.lstat().st_ino, interpreter.lstat().st_mtime_ns
    second = machine.bootstrap()
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert (interpreter.lstat().st_ino, interpreter.lstat().st_mtime_ns) == before
    assert machine.asked() == []


def test_finds_an_interpreter_under_pyenv(machine):
    tree = machine.home / ".pyenv" / "versions" / f"3.{sys.version_info.minor}.99" / "bin"
    tree.mkdir(parents=True)
    (tree / "python3").symlink_to(sys.executable)
    result = machine.bootstrap()
    assert result.returncode == 0, result.stderr
    assert (machine.venv / "bin" / "python3").exists()


def test_an_interpreter_that_is_too_old_is_refused_by_name(machine):
    machine.tool("old", "exit 1")
    result = machine.bootstrap(PYTHON=str(machine.bin / "old"))
    assert result.returncode == 1
    assert result.stderr == f"bootstrap: PYTHON={machine.bin / 'old'} is no Python of version 3.12 or later\n"


def test_root_gets_missing_packages_installed(machine):
    machine.has_environment()
    result = machine.bootstrap("test", PYTHON=sys.executable)
    assert result.returncode == 0, result.stderr
    assert machine.asked() == ["apt-get update -qq", "apt-get install -y -qq --no-install-recommends nodejs"]
    assert "» installing nodejs" in result.stdout


def test_the_tests_get_the_servers_of_their_internet(machine):
    machine.has_environment()
    for name in ("node", "nginx", "psql", "javac", "ip"):
        (machine.bin / name).unlink(missing_ok=True)
    assert machine.bootstrap("test", PYTHON=sys.executable).returncode == 0
    wanted = "nodejs iproute2 nginx-light postgresql-client default-jdk-headless"
    assert machine.asked()[-1] == f"apt-get install -y -qq --no-install-recommends {wanted}"


def test_the_tests_get_what_virtual_machines_are_made_with(machine):
    machine.has_environment()
    for name in ("node", *MACHINES):
        (machine.bin / name).unlink(missing_ok=True)
    assert machine.bootstrap("test", PYTHON=sys.executable).returncode == 0
    kmod = [] if os.path.exists("/sbin/depmod") else ["kmod"]
    wanted = ["nodejs", "qemu-system-x86", "mmdebstrap", "systemd-container", "busybox-static", *kmod, "file"]
    assert machine.asked()[-1].split()[5:] == wanted


def test_the_demo_does_not_ask_for_what_only_tests_need(machine):
    machine.has_environment()
    assert machine.bootstrap("run", PYTHON=sys.executable).returncode == 0
    assert machine.asked() == []


def test_an_ordinary_user_is_told_what_to_install(machine):
    machine.tool("id", "echo 1000")
    (machine.bin / "git").unlink()
    result = machine.bootstrap("test", PYTHON=sys.executable)
    assert result.returncode == 1
    assert result.stderr == "bootstrap: needs system packages; run: sudo apt-get install git nodejs\n"
    assert not machine.venv.exists()


def test_a_system_without_apt_is_told_what_to_install(machine):
    (machine.bin / "apt-get").unlink()
    result = machine.bootstrap("test", PYTHON=sys.executable)
    assert result.returncode == 1
    assert result.stderr == "bootstrap: needs these Debian packages, or their like on this system: nodejs\n"


def test_a_package_that_cannot_be_installed_stops_it(machine):
    machine.tool("apt-get", '[ "$1" = update ]')
    result = machine.bootstrap("test", PYTHON=sys.executable)
    assert result.returncode == 1
    assert result.stderr == "bootstrap: apt-get could not install nodejs\n"


@needs_empty_search
def test_without_any_suitable_interpreter_it_says_so(machine):
    result = machine.bootstrap()
    assert result.returncode == 1
    assert result.stderr.startswith("bootstrap: needs Python 3.12 or later, which neither this system has nor")
    assert "(python3 there is 3.11)" in result.stderr
    assert not machine.venv.exists()


@needs_empty_search
def test_a_distribution_with_a_suitable_python_has_it_installed(machine):
    machine.tool("apt-cache", "echo '  Candidate: 3.13.5-1'")
    machine.tool("ln", 'exec /bin/ln "$@"')
    install = f'[ "$1" = update ] || ln -s {sys.executable} {machine.bin}/python3'
    machine.tool("apt-get", f'echo "apt-get $*" >>{machine.log}\n{install}')
    result = machine.bootstrap()
    assert result.returncode == 0, result.stderr
    assert machine.asked()[-1] == "apt-get install -y -qq --no-install-recommends python3 python3-venv"
    assert (machine.venv / "bin" / "python3").exists()


def test_an_interpreter_without_ensurepip_gets_its_package(machine):
    """Debian splits `venv` off its interpreters; the stand-in lacks it until it is "installed"."""
    machine.tool(
        "bare",
        f'case "$*" in *ensurepip*) [ -e {machine.log} ] || exit 1 ;; esac\nexec {sys.executable} "$@"',
    )
    result = machine.bootstrap(PYTHON=str(machine.bin / "bare"))
    assert result.returncode == 0, result.stderr
    package = f"python3.{sys.version_info.minor}-venv"
    assert machine.asked()[-1] == f"apt-get install -y -qq --no-install-recommends {package}"
    assert os.access(machine.venv / "bin" / "python3", os.X_OK)
