"""The default filters in this kernel: what is refused, and that programs run."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from osmoda.sandbox import seccomp
from osmoda.sandbox.syscall_numbers import KNOWN
from tests.seccomp_filters import (
    TIERS,
    default_filter,
)

MACHINE = platform.machine()
LIBC = ctypes.CDLL(None, use_errno=True)


class SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(program: bytes) -> None:
    """Set the filter on this process, as the sandbox's init does; for `preexec_fn`."""
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = SockFprog(len(program) // 8, ctypes.addressof(buffer))
    if LIBC.prctl(38, 1, 0, 0, 0) or LIBC.prctl(22, 2, ctypes.byref(fprog), 0, 0):
        os._exit(99)


def under(
    program: bytes | None, command: Sequence[str | Path], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    preexec: Callable[[], None] | None = partial(install, program) if program else None
    return subprocess.run(command, preexec_fn=preexec, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)


PROBE = """
import ctypes, errno, json, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(nr, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(nr), *(ctypes.c_long(a) if isinstance(a, int) else a for a in args))
    return errno.errorcode[ctypes.get_errno()] if result == -1 else result
def allow_all(flags):
    code = ctypes.create_string_buffer(b"\\x06\\0\\0\\0\\0\\0\\xff\\x7f", 8)
    class Fprog(ctypes.Structure):
        _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))
    return call(NR["seccomp"], 1, flags, ctypes.byref(Fprog(1, ctypes.addressof(code))))
libc.prctl(38, 1, 0, 0, 0)
"""


def probe(program: bytes | None, code: str, cwd: Path | None = None) -> object:
    """What `code` leaves in `found`, run by a Python under the filter, with NR and `call` at hand."""
    text = f"NR = {dict(KNOWN[MACHINE])!r}\n{PROBE}\n{code}\nprint(json.dumps(found))"
    done = under(program, [sys.executable, "-I", "-S", "-c", text], cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


here = pytest.mark.parametrize("program", [default_filter(MACHINE, tier) for tier in TIERS], ids=["tier1", "tier2"])


@here
def test_refused_calls_in_this_kernel(program: bytes) -> None:
    code = """
found = {name: call(NR[name], *args) for name, args in {
    "unshare": (0,), "setns": (-1, 0), "mount": (0, 0, 0, 0, 0), "bpf": (-1, 0, 0), "keyctl": (-1,), "add_key": (0,),
    "perf_event_open": (0, 0, 0, 0, 0), "io_uring_setup": (1, 0), "userfaultfd": (1,), "ptrace": (-1, 0, 0, 0),
    "process_vm_readv": (os.getpid(), 0, 0, 0, 0, 0), "open_by_handle_at": (-1, 0, 0), "personality": (8,),
    "fsopen": (0, 0), "chroot": (0,), "quotactl": (0, 0, 0, 0),
}.items()}
found["clone3"] = call(NR["clone3"], 0, 0)
found["openat2"] = call(NR["openat2"], -1, 0, 0, 0)
found["beyond"] = call(470, 0)
"""
    outside, inside = probe(None, code), probe(program, code)
    assert isinstance(inside, dict)
    assert isinstance(outside, dict)
    assert inside.pop("clone3") == inside.pop("openat2") == inside.pop("beyond") == "ENOSYS"
    assert set(inside.values()) == {"EPERM"}
    # Outside the same calls get past the entry: they succeed or fail on what they were given.
    assert outside["unshare"] == 0
    assert outside["clone3"] == "EINVAL"
    assert outside["openat2"] in ("EINVAL", "EFAULT")
    assert outside["open_by_handle_at"] in ("EFAULT", "EBADF", "EPERM")  # as the kernel looks first at one or the other
    assert outside["personality"] == 0


@here
def test_the_terminal_requests_with_high_bits_in_this_kernel(program: bytes) -> None:
    code = """
import pty
leader, follower = pty.openpty()
byte = ctypes.create_string_buffer(b"x")
found = [call(NR["ioctl"], follower, high | 0x5412, ctypes.byref(byte)) for high in (0, 1 << 32, 0xffffffff << 32)]
found.append(call(NR["ioctl"], follower, 0x5413, ctypes.byref(ctypes.create_string_buffer(8))))  # TIOCGWINSZ
"""
    assert probe(program, code) == ["EPERM", "EPERM", "EPERM", 0]
    code = code.replace("import pty", "import pty\nimport os\nos.setsid()").replace(
        "byte =", "import fcntl; fcntl.ioctl(follower, 0x540E, 0)\nbyte ="
    )
    assert probe(program, code) == ["EPERM", "EPERM", "EPERM", 0]
    if Path("/proc/sys/dev/tty/legacy_tiocsti").read_text() == "1\n":
        assert probe(None, code) == [0, 0, 0, 0]


@here
def test_set_id_files_in_this_kernel(program: bytes, tmp_path: Path) -> None:
    code = """
def attempt(function, *args):
    try:
        function(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return 0
open("plain", "w").close()
found = [
    attempt(os.chmod, "plain", 0o4755),
    attempt(os.chmod, "plain", 0o755),
    attempt(lambda: os.close(os.open("made", os.O_CREAT | os.O_WRONLY, 0o4755))),
    attempt(lambda: os.close(os.open("made", os.O_CREAT | os.O_WRONLY, 0o755))),
    attempt(os.mkfifo, "fifo"),
    attempt(os.mknod, "whiteout", 0o020600, 0),
]
"""
    assert probe(None, code, tmp_path) == [0, 0, 0, 0, 0, 0]
    for left in tmp_path.iterdir():
        left.unlink()
    assert probe(program, code, tmp_path) == ["EPERM", 0, "EPERM", 0, 0, "EPERM"]
    assert not any(path.stat().st_mode & 0o6000 for path in tmp_path.iterdir())


@here
def test_sockets_in_this_kernel(program: bytes) -> None:
    code = """
import _socket
def attempt(*args):
    try:
        _socket.socket(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return 0
found = {"inet": attempt(2, 1), "inet6": attempt(10, 2), "packet": attempt(17, 3), "raw": attempt(2, 3, 1),
         "netlink": attempt(16, 3, 0), "vsock": attempt(40, 1), "mptcp": attempt(2, 1, 262), "unix": attempt(1, 1)}
_socket.socketpair()
"""
    unix = 0 if program == default_filter(MACHINE, 1) else "EPERM"
    assert probe(program, code) == {
        "inet": 0,
        "inet6": 0,
        "packet": "EPERM",
        "raw": "EPERM",
        "netlink": "EPERM",
        "vsock": "EPERM",
        "mptcp": "EPROTONOSUPPORT",
        "unix": unix,
    }


@here
def test_the_payload_may_confine_itself_but_not_listen(program: bytes) -> None:
    code = "found = [allow_all(8) if NR else 0, allow_all(0)]; found[0] = found[0] if isinstance(found[0], str) else 0"
    assert probe(None, code) == [0, 0]
    assert probe(program, code) == ["EPERM", 0]


def test_with_nobody_listening_the_answer_stays_no() -> None:
    program = default_filter(MACHINE, 1, notify=True)
    code = f"""
class Fprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))
program = bytes.fromhex("{program.hex()}")
buffer = ctypes.create_string_buffer(program, len(program))
listener = call(NR["seccomp"], 1, 8, ctypes.byref(Fprog(len(program) // 8, ctypes.addressof(buffer))))
assert isinstance(listener, int)
os.close(listener)
found = [call(NR["unshare"], 0), allow_all(8), allow_all(0), call(NR["unshare"], 0)]
"""
    assert probe(None, code) == ["ENOSYS", "EPERM", 0, "ENOSYS"]


@pytest.mark.skipif(MACHINE != "x86_64", reason="int 0x80 is x86")
@here
def test_int_0x80_does_not_exist(program: bytes) -> None:
    # mov eax, 20 (getpid of i386); int 0x80; ret
    code = """
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("b814000000cd80c3"))
function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
result = function()
found = result == os.getpid() or result
"""
    assert probe(None, code) is True
    assert probe(program, code) == -errno.ENOSYS


@here
def test_python_forks_threads_and_spawns(program: bytes, tmp_path: Path) -> None:
    code = """
import subprocess, threading
reader, writer = os.pipe()
if not (pid := os.fork()):
    os.write(writer, b"child")
    os._exit(3)
threads = [threading.Thread(target=lambda: os.write(writer, b"t")) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
spawned = os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1])
os.close(writer)
found = [status, spawned, sorted(os.read(reader, 99)), subprocess.check_output(["echo", "hi"], text=True)]
"""
    assert probe(program, code, tmp_path) == [3, 0, sorted(b"childtttt"), "hi\n"]


def test_the_floor_alone_is_enough_to_start_a_command_and_reap_it() -> None:
    program = seccomp.build(frozenset(), arch=MACHINE, notify=False, tier=2)
    code = f"""
import _socket, posix, _signal
class Fprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))
program = bytes.fromhex("{program.hex()}")
buffer = ctypes.create_string_buffer(program, len(program))
ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
assert call(NR["seccomp"], 1, 0, ctypes.byref(Fprog(len(program) // 8, ctypes.addressof(buffer)))) == 0
posix.chdir("/")
posix.stat("/bin/true")
actions = [(posix.POSIX_SPAWN_OPEN, 0, "/dev/null", posix.O_RDWR, 0), (posix.POSIX_SPAWN_DUP2, 0, 1)]
pid = posix.posix_spawn(
    "/bin/true", ["true"], {{}}, file_actions=actions, setsid=True, setsigmask=(), setsigdef=(_signal.SIGINT,)
)
pidfd = posix.pidfd_open(pid)
theirs.sendmsg([b"P"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pidfd.to_bytes(4, "little"))])
received = ours.recvmsg(1, 64)[0].decode()
theirs.send(b"S")
found = [received, ours.recv(1).decode(), posix.waitpid(pid, 0)[1], call(NR["close_range"], pidfd, pidfd, 0)]
found += [call(NR["kill"], pid, 0), call(NR["pipe2"], 0, 0)]
"""
    assert probe(None, code) == ["P", "S", 0, 0, "ESRCH", "EPERM"]


GIT = """
export HOME=$PWD GIT_CONFIG_NOSYSTEM=1
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git init -q one && cd one && echo text > file && git add file && git commit -q -m message && cd ..
git clone -q one two && git -C two log --format=%s && git -C two gc -q
"""
GCC = """
printf '#include <stdio.h>\\nint main(void) { puts("made"); return 0; }\\n' > made.c
gcc -O1 made.c -o made && ./made
"""
NODE = """node -e '
const { Worker } = require("worker_threads");
require("child_process").execSync("true");
new Worker("require(\\"worker_threads\\").parentPort.postMessage(1)", { eval: true }).on("message", () => {
  const server = require("http").createServer((_, answer) => answer.end("served")).listen(0, "127.0.0.1", () =>
    fetch(`http://127.0.0.1:${server.address().port}`)
      .then((response) => response.text())
      .then((text) => { console.log(text); process.exit(0); }));
});'"""
BASH = "x=$(echo sub | tr a-z A-Z); (exit 3) || echo $x $? <(true) > /dev/null && ls / | head -n 1 && echo $x"


@here
@pytest.mark.parametrize(
    ("needs", "script", "says"),
    [
        ("bash", BASH, "SUB"),
        ("git", GIT, "message"),
        ("gcc", GCC, "made"),
        ("node", NODE, "served"),
        ("java", "java -Xmx64m -version 2>&1", "version"),
    ],
    ids=lambda value: value if value in {"bash", "git", "gcc", "node", "java"} else "",
)
def test_programs_run_under_the_default_filter(
    program: bytes, needs: str, script: str, says: str, tmp_path: Path
) -> None:
    if not shutil.which(needs):
        pytest.skip(f"{needs} is not installed")
    done = under(program, ["bash", "-c", f"set -e\n{script}"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
