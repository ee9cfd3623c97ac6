"""Ways out by what a program is born with: its terminal and its descriptors."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.conftest import Attacker, as_root

TIOCLINUX, TIOCCONS, TIOCSETD = "0x541c", "0x541d", "0x5423"


@as_root
def test_typing_into_the_terminal(attacker: Attacker) -> None:
    """TIOCSTI puts characters into the terminal's input, for the shell to run when the program has ended.

    The kernel takes 32 bits of the request: with any above set it is the same (CVE-2019-10063). As root, since newer
    kernels keep TIOCSTI for CAP_SYS_ADMIN.
    """
    attacks = {high_bits: ["tiocsti", high_bits] for high_bits in ("0", "1", "0xffffffff")}
    assert attacker.all_outside(attacks, privileged=True) == dict.fromkeys(attacks, "OK typed")
    ended = attacker.all_inside(attacks)
    assert (ended.each(), ended.refused()) == (dict.fromkeys(attacks, "EPERM"), {"ioctl"})


def test_the_consoles_paste_buffer_and_output(attacker: Attacker) -> None:
    """TIOCLINUX pastes on a console, TIOCCONS takes its output, TIOCSETD loads line disciplines.

    Outside the driver answers: a pty is no console, and line discipline 1 is not there or not for us.
    """
    attacks = {request: ["terminal-ioctl", request] for request in (TIOCLINUX, TIOCCONS, TIOCSETD)}
    outside = attacker.all_outside(attacks)
    assert outside[TIOCLINUX] == "ENOTTY"
    if attacker.world.is_root:
        assert outside[TIOCCONS] in ("OK", "EBUSY")
    assert outside[TIOCSETD] in ("OK", "EINVAL", "EPERM")
    ended = attacker.all_inside(attacks)
    assert ended.each() == dict.fromkeys(attacks, "EPERM")
    assert ended.refused() == {"ioctl"}


@pytest.fixture
def hosts_folder(attacker: Attacker) -> Path:
    """A folder of the world's user that no profile grants."""
    folder = attacker.world.tmp / "hosts"
    folder.mkdir()
    (folder / "secret").write_text("the host's secret\n")
    attacker.world.own(folder)
    return folder


def test_a_folder_left_open_by_the_caller(attacker: Attacker, hosts_folder: Path) -> None:
    """A descriptor of a directory leads out of any root, whoever left it (CVE-2024-21626)."""
    with open_directory(hosts_folder) as fd:
        assert attacker.outside("any-directory", "secret", pass_fds=(fd,)).line == "OK the host's secret"
        ended = attacker.inside("any-directory", "secret", pass_fds=(fd,))
    assert ended.line == "EBADF", "no descriptor above 2 is there"


def test_starting_in_a_folder_left_open_by_the_caller(attacker: Attacker, hosts_folder: Path) -> None:
    """The working directory as /proc/self/fd/N: resolved after the root has changed, by a process that still has it."""
    with open_directory(hosts_folder) as fd:
        control = attacker.world.run(["sh", "-c", f"cd /proc/self/fd/{fd} && cat secret"], pass_fds=(fd,))
        assert control.stdout == "the host's secret\n"
        for number in (fd, 3, 4, 5):
            options = ["--chdir", f"/proc/self/fd/{number}"]
            ended = attacker.run("cat", "secret", "../secret", options=options, pass_fds=(fd,))
            assert ended.status == 125
            assert ended.output == ""
            assert f"chdir /proc/self/fd/{number}: " in ended.errors


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_a_folder_as_a_standard_stream(attacker: Attacker, hosts_folder: Path, stream: str) -> None:
    """It would be passed on as it is, and openat(2) on it leads out."""
    number = ["stdin", "stdout", "stderr"].index(stream)
    with_folder = ["sh", "-c", f'exec {number}<"$0"; exec "$@"', str(hosts_folder)]
    got = attacker.world.tmp / "got"
    source = f"/proc/self/fd/{number}/secret"
    assert attacker.world.run([*with_folder, "cp", source, str(got)]).returncode == 0
    assert got.read_text() == "the host's secret\n"
    ended = attacker.world.run([*with_folder, *attacker.world.osmoda_argv(*attacker.argv("cat", source))])
    assert (ended.returncode, ended.stdout) == (125, "")
    if stream != "stderr":
        assert f"{stream} is a directory" in ended.stderr


def test_the_launchers_own_descriptors(attacker: Attacker) -> None:
    """What the monitor and pid 1 hold (control socket, leases, listener, cgroup files) is not the command's."""
    listing = ["sh", "-c", "ls -l /proc/self/fd | sed -n 's/.* \\([0-9]* -> .*\\)/\\1/p'"]
    assert "3 -> " in attacker.world.run(listing, check=True).stdout, "ls itself has its folder open"
    ended = attacker.run(*listing)
    found = [line.split(" -> ") for line in ended.output.splitlines()]
    assert [number for number, _ in found] == ["0", "1", "2", "3"]
    assert found[3][1].startswith("/proc/")
    pid_1 = attacker.inside("read", "/proc/1/fd")
    assert pid_1.line == "EACCES", "and pid 1 does not let anybody look (PR_SET_DUMPABLE)"


@contextlib.contextmanager
def open_directory(path: Path) -> Iterator[int]:
    """A directory's descriptor for children to inherit."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def test_the_program_of_the_launcher(attacker: Attacker) -> None:
    """As runc was overwritten through /proc/self/exe (CVE-2019-5736): pid 1 runs the launcher's interpreter."""
    copy = attacker.world.tmp / "launcher"
    shutil.copy("/bin/sleep", copy)
    attacker.world.own(copy)
    assert attacker.outside("overwrite-exe", str(copy)).line == "OK"
    assert copy.read_bytes()[:2] == b"#!"
    ended = attacker.inside("overwrite-exe", "1")
    assert ended.line == "EACCES", "pid 1 lets nobody look (PR_SET_DUMPABLE)"
    assert attacker.inside("readlink", "/proc/1/exe").line == "EACCES"
