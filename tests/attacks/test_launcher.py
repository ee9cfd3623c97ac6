"""The launcher itself: its monitor killed, its answers given by somebody else, its kept plans forged."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from osmoda.sandbox import cache, plans, request
from osmoda.sandbox.plan import Plan
from tests.attacks.conftest import Attacker, as_root

# --- the monitor ---


@pytest.mark.orphans
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_the_monitor_is_killed(attacker: Attacker, number: int, no_leftovers: Path) -> None:
    """Everything goes with it: a daemon in a session of its own, which holds the pipe; mounts, cgroup, lease (see the
    check after each test)."""
    limits = '[process]\nmemory = "256M"\n' if attacker.world.is_root else ""
    options = ["--profile", attacker.profile(limits)]
    both = f"{attacker.program} orphan; {attacker.program} orphan; exec sleep 1000"
    control = attacker.world.popen(["sh", "-c", both], stdout=subprocess.PIPE, text=True)
    pids = [int(control.stdout.readline().split()[1]) for _ in range(2)]
    control.send_signal(number)
    control.wait()
    for pid in pids:
        os.kill(pid, 0)  # outside they stay
        os.kill(pid, signal.SIGKILL)
    assert control.stdout.read() == ""
    control.stdout.close()
    command = attacker.world.osmoda_argv(*attacker.argv("sh", "-c", both, options=options))
    with attacker.world.popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        for _ in range(2):
            assert running.stdout.readline().startswith("OK ")
        running.send_signal(number)
        running.wait()
        assert running.stdout.read() == "", "the end of the pipe: nobody holds it any more"
    assert running.returncode == -number


def test_answering_in_the_dead_monitors_place(attacker: Attacker) -> None:
    """A refused call waits for the monitor's answer. When that is dead, a filter with a listener of the program's own
    could take its place and answer "continue": then the kernel executes the call. No listener, no answer."""
    assert attacker.outside("answer", "outer").line == "OK the refused call was executed"
    ended = attacker.inside("answer", "inner")
    assert ended.line == "EPERM"
    assert ended.refused() == set(), "an errno of the filter's, not a notification: it must hold when nobody listens"


# --- kept plans ---


def forge(tier: int) -> tuple[str, dict[str, bytes]]:
    """Where the plan of `run --tier` is kept, and forged entries for it, each with the right digest.

    All set EVIL=1. "" holds in every other respect, of the others one witness does not.
    """
    asked = request.parse(["--tier", str(tier), "--", "env"])
    assert asked is not None
    plan, _ = plans.for_request(asked, os.getcwd())
    path = cache._path("plans", plans.key(asked, os.getcwd()))
    with open(path, "rb") as file:
        key, witnesses, _ = cache.marshal.loads(file.read()[32:])
    values = {name: getattr(plan, name) for name in Plan.__fields__}
    evil = Plan(**{**values, "environment": (*plan.environment, ("EVIL", "1"))}).dump()
    sound = dict(zip(cache.Witnesses.__fields__, witnesses, strict=True))
    (first, inode, changed), *others = sound["unmoved"]
    stale = {
        "": {},
        "for another kernel": {"host": ("1.0", *sound["host"][1:])},
        "of a profile that has changed": {"files": (*sound["files"], ("/etc/hostname", "0" * 64))},
        "by other code": {"unmoved": ((first, inode, changed + 1), *others)},
        "before a profile of that name was made": {"absent": (*sound["absent"], "/etc/passwd")},
    }
    entries = {
        name: cache.marshal.dumps((key, tuple({**sound, **other}.values()), evil)) for name, other in stale.items()
    }
    entries["for another request"] = cache.marshal.dumps(((*key[:-1], "elsewhere"), witnesses, evil))
    return path, {name: cache.sha256(body).digest() + body for name, body in entries.items()}


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"EVIL")] ^= 0x20
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def give_to_another(path: Path) -> None:
    os.chown(path, 54321, 54321)


def let_the_group_write(path: Path) -> None:
    path.chmod(0o620)


def let_others_read(path: Path) -> None:
    path.chmod(0o604)


def make_it_a_link(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def give_it_a_second_name(path: Path) -> None:
    os.link(path, path.with_name("second"))


def make_it_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def let_others_write_in_the_folder(path: Path) -> None:
    path.parent.chmod(0o722)


def make_the_folder_a_link(path: Path) -> None:
    elsewhere = path.parent.with_name("elsewhere")
    path.parent.rename(elsewhere)
    path.parent.symlink_to(elsewhere)


TAMPERING = (
    flip_a_byte,
    cut_short,
    let_the_group_write,
    let_others_read,
    make_it_a_link,
    give_it_a_second_name,
    make_it_a_fifo,
    let_others_write_in_the_folder,
    make_the_folder_a_link,
    *((give_to_another,) if os.getuid() == 0 else ()),
)


class Kept:
    """The kept plan of `run --tier N`, forged."""

    def __init__(self, attacker: Attacker) -> None:
        self.attacker = attacker
        path, self.entries = attacker.world.call(forge, attacker.tier)
        self.path = Path(path)

    def put(self, entry: str) -> None:
        """Keep one of the forged entries, in a folder as it should be."""
        folder = self.path.parent
        if folder.is_symlink():
            folder.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        self.path.write_bytes(self.entries[entry])
        self.path.chmod(0o600)
        self.attacker.world.own(folder)

    def used(self) -> bool:
        """Whether a run takes the plan that is kept. Not one of a pool: that is not built from kept plans."""
        with pytest.MonkeyPatch.context() as environment:
            environment.delenv("OSMODA_TEST_POOL", raising=False)
            ended = self.attacker.world.osmoda("run", "--tier", str(self.attacker.tier), "--", "env")
        assert ended.returncode == 0, ended.stderr
        assert "container=osmoda" in ended.stdout
        return "EVIL=1" in ended.stdout


def test_a_kept_plan_is_tampered_with(attacker: Attacker) -> None:
    """The control: a forged plan that is the user's own file, whole and closed to others, is taken for theirs."""
    kept = Kept(attacker)
    for tamper in TAMPERING:
        kept.put("")
        assert kept.used()
        tamper(kept.path)
        assert not kept.used(), tamper.__name__


def test_a_kept_plan_of_another_time_or_place(attacker: Attacker) -> None:
    """For another kernel, of a profile that has changed since, by other code, for another request."""
    kept = Kept(attacker)
    kept.put("")
    assert kept.used()
    for entry in kept.entries:
        if entry:
            kept.put(entry)
            assert not kept.used(), entry


def test_a_profile_that_changes_is_compiled_again(attacker: Attacker) -> None:
    """Same name, same size, same time stamp."""
    profile = Path(attacker.profile('[environment]\nset = {{ MARK = "one" }}\n'))
    status = profile.stat()
    assert "MARK=one" in attacker.run("env", options=["--profile", str(profile)]).output
    profile.write_text(profile.read_text().replace("one", "two"))
    os.utime(profile, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "MARK=two" in attacker.run("env", options=["--profile", str(profile)]).output


@as_root
def test_osmodas_folders_belong_to_somebody_else(attacker: Attacker) -> None:
    """Made by another user before the first run: neither written nor believed."""
    environment = attacker.world.environment
    folders = [Path(value) for name, value in environment.items() if name.endswith(("_DIR", "_HOME"))]
    for folder in folders:
        if folder.is_dir():
            shutil.rmtree(folder)
        folder.mkdir(mode=0o755)
        (folder / "osmoda").mkdir(mode=0o755)
        for path in (folder, folder / "osmoda"):
            os.chown(path, 54321, 54321)
    ended = attacker.world.osmoda("run", "--tier", str(attacker.tier), "--", "env")
    written = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert written == []
    if ended.returncode == 0:
        assert "container=osmoda" in ended.stdout
    else:
        assert ended.returncode == 125
        assert len(ended.stderr.splitlines()) == 1
