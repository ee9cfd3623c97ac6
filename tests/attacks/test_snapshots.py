"""A snapshot of a subvolume is another name for all that lies in it, and on btrfs anybody who may write makes one."""

from __future__ import annotations

import lzma
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from osmoda.sandbox.syscall_numbers import KNOWN
from tests.attacks.conftest import Attacker, as_root

NUMBER = KNOWN[platform.machine()]
PYTHON = "/usr/bin/python3"
IMAGE = Path(__file__).with_name("btrfs.img.xz")  # mkfs.btrfs --mixed, 16 MiB: most machines have no such program
REQUESTS = {"0x50009401": "BTRFS_IOC_SNAP_CREATE", "0x50009417": "BTRFS_IOC_SNAP_CREATE_V2"}
REQUESTS |= {"0x4020bc10": "BCH_IOCTL_SUBVOLUME_CREATE"}

# In a mount namespace of its own, so that nothing is left behind whatever happens.
MOUNTED = """
set -e
mount -o loop "$1" "$2" || exit 77
cd "$2"
"$3" -c "$4"
mkdir subvolume/inner
echo secret > subvolume/.env
chown -R 65534:65534 subvolume
cd subvolume
shift 4
"$@"
"""
MAKE_SUBVOLUME = """
import fcntl, os, struct
fcntl.ioctl(os.open(".", os.O_RDONLY), 0x5000940E, bytearray(struct.pack("q4088s", 0, b"subvolume")))
"""
SNAPSHOT = """
import fcntl, os, struct, sys
here = os.open(".", os.O_RDONLY)
arguments = {
    0x50009401: struct.pack("q4088s", here, b"first"),
    0x50009417: struct.pack("qQQ4Q4040s", here, 0, 0, 0, 0, 0, 0, b"second"),
}
for number, argument in arguments.items():
    try:
        fcntl.ioctl(here, number, bytearray(argument))
    except OSError as error:
        print(error.errno)
for path in (".env", "first/.env", "second/.env"):
    try:
        print(open(path).read().strip())
    except OSError as error:
        print(error.strerror)
"""
DENIED = ["Permission denied", "No such file or directory", "No such file or directory"]


def in_subvolume(tmp: Path, *command: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    """Run `command` in a subvolume of a new file system, which holds a file `.env`."""
    image, place = tmp / "image", tmp / "mounted"
    image.write_bytes(lzma.decompress(IMAGE.read_bytes()))
    place.mkdir(exist_ok=True)
    inside = ["sh", "-c", MOUNTED, "sh", str(image), str(place), PYTHON, MAKE_SUBVOLUME, *map(str, command)]
    done = subprocess.run(
        ["unshare", "--mount", *inside],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode == 77:
        pytest.skip(f"no btrfs can be mounted here: {done.stderr}")
    return done


@as_root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="util-linux is missing")
@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_what_is_denied_in_a_snapshot_of_the_workspace(attacker: Attacker) -> None:
    tmp = attacker.world.tmp
    outside = in_subvolume(tmp, PYTHON, "-c", SNAPSHOT)
    assert outside.stdout.splitlines() == ["secret"] * 3, outside.stderr
    work = tmp / "mounted" / "subvolume"
    profile = attacker.profile(f'[filesystem]\nworkspace = "direct"\ndeny = ["{work}/.env"]\n')
    run = attacker.world.osmoda_argv(
        "run", "--profile", profile, "--workspace", str(work), "--", PYTHON, "-c", SNAPSHOT
    )
    inside = in_subvolume(tmp, *run)
    assert inside.stdout.splitlines() == ["1", "1", *DENIED], inside.stderr


def test_requests_for_a_snapshot(attacker: Attacker) -> None:
    """Whatever the file system, and the high bits: it is the filter that refuses them."""
    asked = {
        f"{high}{number}": ["call", str(NUMBER["ioctl"]), "1", f"{high << 32 | int(number, 16):#x}", "0"]
        for number in REQUESTS
        for high in (0, 1)
    }
    for line in attacker.all_outside(asked).values():
        assert line == "ENOTTY"
    ended = attacker.all_inside(asked)
    assert set(ended.each().values()) == {"EPERM"}
    told = {entry["object"] for entry in ended.report["denials"] if entry["operation"] == "ioctl"}
    assert told == set(REQUESTS.values())
