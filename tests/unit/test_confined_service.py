"""A service under a profile of its own: what it needs works, and what takes it over gains nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import threading

import pytest

from osmoda.sandbox import confined_service
from osmoda.sandbox.errors import CompileError
from osmoda.sandbox.profile import Profile
from tests.worlds import World

ATTEMPTS = {
    "fork": lambda folder: os.fork(),
    "posix_spawn": lambda folder: os.posix_spawn("/bin/true", ["true"], {}),
    "execve": lambda folder: os.execv("/bin/true", ["true"]),
    "read a file of the caller's": lambda folder: open(f"{folder}/secret").close(),
    "write beside its folder": lambda folder: open(f"{folder}/planted", "w").close(),
    "unshare": lambda folder: os.unshare(os.CLONE_NEWUSER),
    "ptrace": lambda folder: open("/proc/1/mem", "rb").close(),
}


def outside(folder):
    """The positive control: without confinement all but the last can be done (in children, where it ends them)."""
    done = {}
    for name in ("read a file of the caller's", "write beside its folder"):
        ATTEMPTS[name](folder)
        done[name] = True
    done["fork"] = subprocess.run(["/bin/true"], check=False).returncode == 0
    os.unlink(f"{folder}/planted")
    return done


def inside(folder):
    confined_service.confine(confined_service.profile_of("gateway"), (f"{folder}/own",))
    found = {}
    for name, attempt in ATTEMPTS.items():
        try:
            attempt(folder)
            found[name] = 0
        except OSError as error:
            found[name] = error.errno
    # What a gateway does: threads that resolve names, sockets, its own files.
    resolved = []
    thread = threading.Thread(target=lambda: resolved.extend(socket.getaddrinfo("localhost", 80)))
    thread.start()
    thread.join()
    with open(f"{folder}/own/log", "a") as file:
        file.write("x")
    left, right = socket.socketpair()
    left.close()
    right.close()
    return found, bool(resolved), open("/proc/self/status").read()


def test_a_confined_service_serves_and_does_nothing_else(world: World):
    (world.tmp / "own").mkdir()
    (world.tmp / "secret").write_text("x")
    world.own(world.tmp / "own", world.tmp / "secret")
    folder = str(world.tmp)
    assert all(world.call(outside, folder).values())
    found, resolved, status = world.call(inside, folder)
    assert resolved
    assert found["read a file of the caller's"] == found["write beside its folder"] == 13  # Landlock
    assert {found[name] for name in ("fork", "posix_spawn", "execve", "unshare")} == {1}  # seccomp
    assert found["ptrace"] in {1, 13}
    assert "NoNewPrivs:\t1" in status
    assert "CapBnd:\t0000000000000000" in status or not world.is_root
    assert "CapEff:\t0000000000000000" in status


def test_the_administrators_profile_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("OSMODA_CONFIG_DIR", str(tmp_path))
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / "gateway.toml").write_text("schema = 1\ntier = 1\n[process.limits]\nopen_files = 99\n")
    found = world_call_profile(tmp_path)
    assert found == 99


def world_call_profile(folder):
    """In a fresh process: the directories are those of its environment."""
    code = "from osmoda.sandbox import confined_service as c; print(c.profile_of('gateway').process.limits.open_files)"
    import sys

    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OSMODA_CONFIG_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout)


def test_a_service_without_a_profile_is_not_served():
    with pytest.raises(CompileError, match="no profile for the service nonsense"):
        confined_service.profile_of("nonsense")


def test_a_kernel_without_landlock_is_an_error_unless_the_profile_says_so(monkeypatch):
    from osmoda.host import features, syscalls

    calls = []
    real = features.probe()
    lacking = type(real)(*[0 if name == "landlock" else getattr(real, name) for name in features.Features.__fields__])
    monkeypatch.setattr(features, "probe", lambda: lacking)
    for name in ("drop_bounding_set", "capset_none", "prctl", "prlimit_self", "seccomp_set_filter"):
        monkeypatch.setattr(syscalls, name, lambda *_: calls.append("applied"))
    with pytest.raises(CompileError, match="no Landlock"):
        confined_service.confine(Profile.default(1), ())
    assert calls == []
