"""Sandboxes that wait in a pool: the same results as cold ones, nothing shared between uses, nothing left behind.

Each test calls a function in a fresh process of the world. Attacks on pooled sandboxes: tests/pooled.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from osmoda.sandbox import (
    DEVNULL,
    PIPE,
    STDOUT,
    CommandError,
    CommandFailed,
    LaunchError,
    Pool,
    Process,
    ProfileError,
    Sandbox,
    TimedOut,
    processes,
)
from tests.worlds import World


def caught(kind: type[BaseException], call: Any, *arguments: Any, **options: Any) -> BaseException:
    try:
        call(*arguments, **options)
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def eventually(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return value


def own() -> list[processes.Running]:
    """The sandboxes of this process: root sees everybody's."""
    mine = descendants(os.getpid())
    return [one for one in processes.running() if one.pid in mine]


def waiting() -> set[int]:
    """The pid 1 of each that has no command."""
    return {one.pid for one in own() if not one.payload}


def descendants(pid: int) -> set[int]:
    found = {pid}
    queue = [pid]
    for one in queue:
        with contextlib.suppress(OSError):
            queue += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
    found.update(queue)
    return found


def keeper_of(pool: Pool) -> int:
    assert pool._process is not None
    return pool._process.pid


# The same as without a pool


def outcomes(sandbox: Sandbox, home: str) -> dict[str, Any]:
    """What many commands come to, without what differs from run to run."""
    found: dict[str, Any] = {}
    given = {
        "status": (["sh", "-c", "exit 7"], {}),
        "signal": (["sh", "-c", "kill -TERM $$"], {}),
        "streams": (["sh", "-c", "cat; echo problem >&2"], {"input": b"a\0b"}),
        "merged": (["sh", "-c", "echo one; echo two >&2"], {"stdout": PIPE, "stderr": STDOUT}),
        "silent": (["sh", "-c", "cat; echo word"], {"stdin": DEVNULL, "stdout": DEVNULL}),
        "environment": (["sh", "-c", "env | sort"], {"env": {"KIND": "call", "LONG": "x" * 40000}}),
        "place": (["pwd"], {}),
        "elsewhere": (["pwd"], {"cwd": "/tmp"}),
        "denied": (["unshare", "-U", "true"], {}),
        "workspace": (["sh", "-c", "cat given; ls /workspace"], {}),
        "descriptors": (["sh", "-c", "ls /proc/self/fd; cat /proc/self/limits"], {}),
        "status of the process": (
            ["grep", "-E", "^(Uid|Gid|Groups|Cap|NoNew|Secc|SigBlk|SigIgn)", "/proc/self/status"],
            {},
        ),
        "forks": (["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 50 & done; wait"], {}),
    }
    for name, (argv, options) in given.items():
        options = {"capture_output": True, **options} if "stdout" not in options else options
        result = asdict(sandbox.run(argv, **options))
        for denial in result["denials"]:
            for key in ("time", "pid", "sandbox", "count"):
                denial.pop(key)
        if name == "forks":
            # How many of them came to be depends on how fast they were.
            result["stderr"] = b"Resource temporarily unavailable" in result["stderr"] or result["stderr"]
        kept = ("status", "signal", "timed_out", "stdout", "stderr", "denials")
        found[name] = {key: result[key] for key in kept}
    found["missing"] = repr(caught(CommandError, sandbox.run, ["no-such-program"]))
    found["not executable"] = repr(caught(CommandError, sandbox.run, ["/etc/passwd"]))
    found["no folder"] = repr(caught(LaunchError, sandbox.run, ["true"], cwd="/none"))
    found["failed"] = repr(caught(CommandFailed, sandbox.run, ["false"], check=True))
    for seconds in (0.3, 3.0, 20.0):  # on a busy machine it may not get to its first word in the shorter ones
        late = caught(TimedOut, sandbox.run, ["sh", "-c", "echo early; sleep 60"], timeout=seconds, capture_output=True)
        assert isinstance(late, TimedOut)
        assert str(late) == f"sh did not end within {seconds:g} s"
        assert seconds * 0.9 < late.result.duration < 55
        found["late"] = (late.result.stdout, late.result.status)
        if late.result.stdout:
            break
    folder = os.open("/", os.O_RDONLY)
    found["folder"] = repr(caught(LaunchError, sandbox.run, ["ls"], stdin=folder))
    os.close(folder)
    return found


PROFILE = """schema = 1
tier = 1
[filesystem]
workspace = "direct"
deny = ["{home}/work/.env"]
[process]
pids = 8
limits = {{ open_files = 32 }}
[environment]
pass = ["LANG"]
set = {{ KIND = "profile", OTHER = "x" }}
"""


def place(home: str) -> str:
    work = Path(home, "work")
    work.mkdir()
    (work / "given").write_text("given\n")
    (work / ".env").write_text("denied\n")
    Path(home, "agent.toml").write_text(PROFILE.format(home=home))
    return str(work)


def compared(home: str) -> tuple[dict[str, Any], dict[str, Any]]:
    work = place(home)
    cold = outcomes(Sandbox(f"{home}/agent.toml", workspace=work), home)
    with Pool(f"{home}/agent.toml", 2, workspace=work) as pool:
        return cold, outcomes(pool, home)


def test_results_are_those_of_a_cold_sandbox(world: World) -> None:
    cold, pooled = world.call(compared, str(world.home))
    assert cold["status"]["status"] == 7
    assert cold["denied"]["denials"]
    for name in cold:
        assert pooled[name] == cold[name], name


def many(home: str) -> dict[str, Any]:
    """Threads, asyncio and more commands at once than sandboxes wait."""
    with Pool(size=2, tier=2) as pool, ThreadPoolExecutor(6) as threads:
        said = threads.map(lambda n: pool.run(["echo", str(n)], capture_output=True).stdout, range(12))
        texts = list(said)

        async def together() -> list[bytes | None]:
            results = await asyncio.gather(*[pool.run_async(["echo", str(n)], capture_output=True) for n in range(4)])
            return [result.stdout for result in results]

        with pool.popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"word\n")
            word = process.stdout.read(100)
            process.terminate()
            ended = process.wait().signal
        return {"threads": texts, "asyncio": asyncio.run(together()), "word": word, "ended": ended}


def test_many_at_once(world: World) -> None:
    assert world.call(many, str(world.home)) == {
        "threads": [b"%d\n" % n for n in range(12)],
        "asyncio": [b"%d\n" % n for n in range(4)],
        "word": b"word\n",
        "ended": signal.SIGTERM,
    }


# Each use is the first and the last

LEAVE = """
import os, socket, subprocess, sys
for path in ("/tmp/left", "/dev/shm/left", os.path.expanduser("~/left")):
    open(path, "w").close()
held = socket.socket(socket.AF_UNIX)
held.bind("\\0left")
held.listen()
os.environ["LEFT"] = "1"
if os.fork() == 0:
    os.setsid()
    os.execvp("sleep", ["sleep", "1000"])
print(os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/ipc"))
"""
LOOK = """
import os, socket, glob
found = [p for p in ("/tmp/left", "/dev/shm/left", os.path.expanduser("~/left")) if os.path.exists(p)]
found += [open(p).read() for p in glob.glob("/proc/[0-9]*/comm") if open(p).read() == "sleep\\n"]
try:
    socket.socket(socket.AF_UNIX).connect("\\0left")
    found.append("socket")
except ConnectionRefusedError:
    pass
found += [name for name in os.environ if name == "LEFT"]
print(os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/ipc"), *found)
"""


def uses() -> list[list[str]]:
    with Pool(size=4, tier=1) as pool:
        # All four are there at once: the number of a namespace that is gone may be that of another one.
        pool.prepare()
        eventually(lambda: len(waiting()) == 4)
        said = []
        for program in (LEAVE, LOOK, LEAVE, LOOK):
            result = pool.run(["/usr/bin/python3", "-c", program], capture_output=True, check=True)
            assert result.stdout is not None
            said.append(result.stdout.decode().split())
        return said


def test_nothing_is_shared_between_uses(world: World) -> None:
    said = world.call(uses)
    assert [len(words) for words in said] == [2, 2, 2, 2], said
    for kind in (0, 1):
        assert len({words[kind] for words in said}) == 4


BOMB = "while :; do sleep 100 & done"


def bombed() -> tuple[bool, list[int]]:
    """One is out of processes, memory and time; the others do not notice."""
    Path("bounded.toml").write_text("schema = 1\ntier = 2\nprocess.pids = 16\n")
    with Pool("bounded.toml", 3) as pool:
        with pool.popen(["sh", "-c", BOMB], stdout=DEVNULL, stderr=DEVNULL) as bomb:
            statuses = [pool.run(["true"]).status for _ in range(4)]
            running = bomb._outcome is None
        return running, statuses


def test_a_bomb_in_one_is_nobody_elses(world: World) -> None:
    assert world.call(bombed) == (True, [0, 0, 0, 0])


# What has changed while they waited


def edited(home: str) -> dict[str, Any]:
    work = place(home)
    profile = Path(home, "agent.toml")
    found = {}
    with Pool(str(profile), 2, workspace=work) as pool:

        def say(command: str) -> str:
            output = pool.run(["sh", "-c", command], capture_output=True).stdout
            assert output is not None
            return output.decode().strip()

        found["first"] = say("echo $KIND; cat .env given")
        pool.prepare()
        profile.write_text(profile.read_text().replace('KIND = "profile"', 'KIND = "edited"'))
        found["edited"] = say("echo $KIND")
        before = waiting()
        # An editor writes a new file and gives it the old one's name: a mask over that is gone with it.
        Path(work, "new").write_text("secret\n")
        os.rename(f"{work}/new", f"{work}/.env")
        found["masked"] = say("cat .env")
        found["dropped"] = eventually(lambda: not waiting() & before)
        os.rename(work, f"{work}.old")
        os.mkdir(work)
        Path(work, "given").write_text("another\n")
        Path(work, ".env").write_text("denied\n")
        found["moved"] = say("cat given")
        good = profile.read_text()
        profile.write_text(good + "nonsense = 1\n")
        found["broken"] = str(caught(ProfileError, pool.run, ["true"])).partition(": ")[2]
        profile.write_text(good)
        found["mended"] = say("echo $KIND")
    return found


def test_a_sandbox_from_before_a_change_is_never_given_out(world: World) -> None:
    assert world.call(edited, str(world.home)) == {
        "first": "profile\ngiven",
        "edited": "edited",
        "masked": "",
        "dropped": True,
        "moved": "another",
        "broken": "environment.nonsense is not a key of a profile; allowed here: pass, set",
        "mended": "edited",
    }


# Ends


def started(pool: Pool) -> Process:
    """A command that the pool knows to run: a signal goes to it through the keeper."""
    script = "trap 'echo known' USR1; echo up; while :; do sleep 0.05; done"
    process = pool.popen(["sh", "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == b"known\n"
    return process


def runs(pool: Pool) -> bool:
    try:
        return pool.run(["true"]).status == 0
    except LaunchError:
        return False


def killed() -> dict[str, Any]:
    found: dict[str, Any] = {}
    with Pool(size=2, tier=2) as pool:
        eventually(lambda: len(waiting()) == 2)
        before = waiting()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before))
        found["instead"] = [pool.run(["true"]).status for _ in range(3)]
        eventually(lambda: len(waiting()) == 2)
        found["replaced"] = not waiting() & before
        # Its pid 1 killed under a command, and the process that keeps the pool.
        process = started(pool)
        (init,) = [one.pid for one in own() if one.payload]
        os.kill(init, signal.SIGKILL)
        found["init"] = process.wait().status
        process = started(pool)
        os.kill(keeper_of(pool), signal.SIGKILL)
        found["keeper"] = repr(caught(LaunchError, process.wait))
        eventually(lambda: not waiting())
        found["lost"] = isinstance(caught(LaunchError, lambda: [pool.run(["true"]) for _ in range(3)]), LaunchError)
        found["again"] = eventually(lambda: runs(pool))  # each that was given out before tells of it once
    found["left"] = waiting()
    found["closed"] = str(caught(LaunchError, pool.run, ["true"]))
    return found


@pytest.mark.orphans
def test_killed_while_they_wait_or_run(world: World) -> None:
    assert world.call(killed) == {
        "instead": [0, 0, 0],
        "replaced": True,
        "init": 137,
        "keeper": "LaunchError('the launcher was killed, or ran out of open files; this sandbox is gone')",
        "lost": True,
        "again": True,
        "left": set(),
        "closed": "the pool is closed",
    }


LIMITED = 'schema = 1\ntier = 2\nenvironment.set = {{ KIND = "{kind}" }}\n'


def crowded() -> dict[str, Any]:
    """More commands than the process that keeps the pool has open files for; then it has none at all for a while."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))
    profile = Path("limited.toml")
    profile.write_text(LIMITED.format(kind="first"))
    found: dict[str, Any] = {}
    with Pool(profile, 2) as pool, contextlib.ExitStack() as ending:

        def hold() -> Process:
            return ending.enter_context(pool.popen(["cat"], stdin=PIPE, stdout=PIPE))

        def answers(process: Process) -> bool:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"word")
            return process.stdout.read(4) == b"word"

        def say() -> str:
            output = pool.run(["sh", "-c", "echo $KIND"], capture_output=True).stdout
            assert output is not None
            return output.decode().strip()

        held: list[Process] = []
        refused = ""
        while not refused and len(held) < 100:
            try:
                held.append(hold())
            except LaunchError as error:
                refused = str(error)
        found["refused"] = (refused.partition(" beside the ")[0], 4 < len(held) < 100)
        found["go on"] = all(map(answers, held))
        for process in held[2:]:
            process.kill()
            process.wait()
        held[2:] = [hold(), hold()]
        found["again"] = (all(map(answers, held)), say())
        # Of a sudden there is none, for what waits, what is built and a plan that comes.
        eventually(lambda: len(waiting()) == 2)
        keeper = keeper_of(pool)
        resource.prlimit(keeper, resource.RLIMIT_NOFILE, (7, 160))
        found["none"] = ["open files" in str(caught(LaunchError, say)) for _ in range(4)]
        profile.write_text(LIMITED.format(kind="edited"))
        found["edited"] = str(caught(LaunchError, say)).partition(" beside the ")[0]
        resource.prlimit(keeper, resource.RLIMIT_NOFILE, (160, 160))
        found["recovered"] = [say() for _ in range(4)]
        found["the same"] = (keeper_of(pool) == keeper, all(map(answers, held)))
    return found


def test_out_of_open_files_it_refuses_and_goes_on(world: World) -> None:
    none = "there are no open files left for one more sandbox"
    assert world.call(crowded) == {
        "refused": (none, True),
        "go on": True,
        "again": (True, "first"),
        "none": [True] * 4,
        "edited": none,
        "recovered": ["edited"] * 4,
        "the same": (True, True),
    }


DYING = """
import os, sys, threading, time
from osmoda.sandbox import Pool
pool = Pool(size=2, tier=2)
pool.prepare()
process = pool.popen(["sleep", "1000"])
os.write(1, b"started\\n")
os.kill(os.getpid(), 9)
"""


@pytest.mark.orphans
def test_a_program_that_is_killed_leaves_nothing(world: World) -> None:
    """The fixture looks for processes, control groups and mounts."""
    result = world.python(DYING)
    assert (result.returncode, result.stdout) == (-9, "started\n")


FORKING = """
import os
from osmoda.sandbox import Pool
with Pool(size=2, tier=2) as pool:
    pool.prepare()
    if os.fork() == 0:
        print(pool.run(["echo", "child"], capture_output=True).stdout.decode(), end="", flush=True)
        pool.close()
        os._exit(0)
    os.wait()
    print(pool.run(["echo", "parent"], capture_output=True).stdout.decode(), end="")
"""


def test_a_forked_child_has_a_pool_of_its_own(world: World) -> None:
    result = world.python(FORKING)
    assert (result.returncode, result.stdout, result.stderr) == (0, "child\nparent\n", "")


OVERLAY = (
    'overlay.toml has an overlay workspace, of which there is one sandbox at a time: a pool wants "direct" or "none" '
    "(filesystem.workspace, or --workspace-mode)"
)


def unfit(home: str) -> list[str]:
    Path(home, "work").mkdir()
    Path(home, "overlay.toml").write_text('schema = 1\ntier = 1\nfilesystem.workspace = "overlay"\n')
    return [
        str(caught(LaunchError, Pool, tier=0)),
        str(caught(LaunchError, Pool, f"{home}/overlay.toml", workspace=f"{home}/work")),
        str(caught(LaunchError, Pool, None, 65)),
    ]


def test_what_cannot_be_pooled_is_refused(world: World) -> None:
    assert world.call(unfit, str(world.home)) == [
        "a pool holds sandboxes, and tier 0 is none: there is nothing to prepare",
        OVERLAY,
        "a pool holds 1 to 64 sandboxes, not 65",
    ]


# The command


@contextlib.contextmanager
def served(world: World, *options: str) -> Iterator[subprocess.Popen[str]]:
    with world.popen(world.osmoda_argv("serve", *options), stdout=PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            assert "run --pool" in service.stdout.readline()
            yield service
        finally:
            service.terminate()
            assert service.wait() == 0


def pool_run(world: World, *words: str, **options: Any) -> tuple[int, str, str]:
    result = world.run(world.osmoda_argv(*words), **options)
    return result.returncode, result.stdout, result.stderr


def runtime(world: World) -> Path:
    own = world.environment.get("OSMODA_RUNTIME_DIR")
    return Path(own) if own else Path(world.environment["XDG_RUNTIME_DIR"], "osmoda")


def test_serve_and_run(world: World) -> None:
    run = ("run", "--pool", "--tier", "2")
    none = "osmoda-sandbox: no pool is served for these options and this workspace; osmoda-sandbox serve, with the same"
    assert pool_run(world, *run, "--", "true")[2].startswith(none)
    with served(world, "--tier", "2", "--size", "2"):
        assert pool_run(world, *run, "-e", "X=1", "--", "sh", "-c", "cat; echo $X; exit 3", input="in\n") == (
            3,
            "in\n1\n",
            "",
        )
        assert pool_run(world, *run, "--timeout", "0.2", "--", "sleep", "60")[0] == 124
        assert pool_run(world, *run, "--", "no-such-program")[0] == 127
        # Neither other options nor a second service for the same ones.
        assert pool_run(world, "run", "--pool", "--tier", "1", "--", "true")[0] == 125
        again = world.osmoda("serve", "--tier", "2")
        assert (again.returncode, again.stderr) == (
            125,
            "osmoda-sandbox: a pool is served for these options and this workspace already\n",
        )
        (address,) = Path(
            world.environment.get("OSMODA_RUNTIME_DIR") or f"{world.environment['XDG_RUNTIME_DIR']}/osmoda"
        ).glob("pools/*.sock")
        assert address.stat().st_mode & 0o777 == 0o600
        assert address.parent.stat().st_mode & 0o777 == 0o700
        # From a sandbox the socket is not even there; a caller that dies takes its sandbox with it.
        with world.popen(world.osmoda_argv(*run, "--", "sleep", "1000")) as caller:
            eventually(lambda: [one for one in own() if one.command == "sleep 1000"])
            caller.kill()
        eventually(lambda: not [one for one in own() if one.command == "sleep 1000"])
    assert pool_run(world, *run, "--", "true")[0] == 125


@pytest.mark.skipif(os.getuid() != 0, reason="needs to be root: it becomes another user")
@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_another_user_gets_no_sandbox(world: World) -> None:
    with served(world, "--tier", "2", "--size", "1"):
        folder = runtime(world)
        (address,) = folder.glob("pools/*.sock")
        program = (
            "import os, socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1]);"
            "print(s.recv(4096))"
        )
        assert "ready" in world.python(program, str(address)).stdout
        # Even where the folder and the socket let it through.
        for path in (folder.parent, folder, address.parent):
            path.chmod(0o711)
        address.chmod(0o666)
        asking = program.replace("s.connect", "os.setuid(12345); s.connect")
        denied = world.python(asking, str(address), check=True).stdout
        assert "refused" in denied
        assert "uid 12345 may not" in denied
        for path in (folder.parent, folder, address.parent):
            path.chmod(0o700)
