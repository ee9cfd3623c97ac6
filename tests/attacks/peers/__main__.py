"""Run the battery in every tool and write docs/peers.md: `make peers`, as root (the attacker is an ordinary user).

Each tool's run is bounded in time, and what takes resources is bounded in number. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from osmoda.host import syscalls
from tests.attacks.peers import page
from tests.attacks.peers.attacking import attack_all
from tests.attacks.peers.set_ups import TOOLS
from tests.bench import peers as installed
from tests.worlds import REPOSITORY, World, make_world

_MS_BIND = 0x1000


def main() -> int:
    """Prepare, attack as an ordinary user, write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.peers", description=__doc__)
    parser.add_argument("--peers", type=Path, default=Path("/opt/osmoda-peers"), help="where tools are installed")
    parser.add_argument("--install", action="store_true", help="install the tools that are missing")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "peers.md", help="the page to write")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=TOOLS,
        metavar="TOOL",
        help=f"do without one: {', '.join(TOOLS)}",
    )
    options = parser.parse_args()
    if os.getuid() != 0:
        parser.error("needs to be root: the attacker is made an ordinary user, the battery put where all tools show it")
    if options.install:
        installed.install(options.peers)
        installed.install_from_pypi(options.peers)
    with tempfile.TemporaryDirectory(prefix="osmoda-peers-") as name:
        top = Path(name)
        (top / "world").mkdir()
        world = make_world("user", top / "world", top / "runtime")
        top.chmod(0o755)
        give_a_name(world, top / "passwd")
        kit = Path(tempfile.mkdtemp(prefix="osmoda-battery-", dir="/usr/local/lib"))
        try:
            fill(kit)
            found = world.call(attack_all, str(options.peers), str(world.tmp), str(kit), timeout=900.0)
        finally:
            shutil.rmtree(kit)
    missing = [tool for tool in TOOLS if tool not in {column.name for column in found} and tool not in options.without]
    if missing:
        print(
            f"nothing is written, since this is not installed: {', '.join(missing)} (--without TOOL)", file=sys.stderr
        )
        return 1
    text = page.written(found, platform.release().partition("-")[0])
    options.output.write_text(text)
    Console().print(f"written: {options.output}")
    return 0


def give_a_name(world: World, passwd: Path) -> None:
    """An entry in the list of users and a home, which firejail wants; only this process and its children see them."""
    entry = f"attacker:x:{world.uid}:{world.gid}::/home/attacker:/bin/sh\n"
    passwd.write_text(Path("/etc/passwd").read_text() + entry)
    os.unshare(os.CLONE_NEWNS)
    syscalls.mount_private()
    syscalls.mount(os.fsencode(passwd), b"/etc/passwd", b"", _MS_BIND, b"")
    syscalls.mount(b"none", b"/home", b"tmpfs", 0, b"mode=0755")
    os.mkdir("/home/attacker", 0o700)
    os.chown("/home/attacker", world.uid, world.gid)


def fill(kit: Path) -> None:
    """The interpreter and the battery, below /usr: every tool shows that, so that none needs a grant more."""
    kit.chmod(0o755)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(sys.base_prefix)
    (kit / "bin").mkdir()
    shutil.copy(os.path.realpath(sys.executable), kit / "bin" / version)
    ignored = shutil.ignore_patterns(
        "site-packages", "test", "tests", "__pycache__", "idlelib", "tkinter", "*.a", "config-*"
    )
    shutil.copytree(base / "lib" / version, kit / "lib" / version, ignore=ignored)
    for library in (base / "lib").glob("libpython*.so*"):
        shutil.copy(library, kit / "lib")
    for room in ("host", "egress", "sandbox"):
        shutil.copytree(REPOSITORY / room, kit / "packages" / "osmoda" / room, ignore=ignored)


if __name__ == "__main__":
    sys.exit(main())
