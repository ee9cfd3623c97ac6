"""What stands outside while a sandbox is attacked: victims, services and secrets, all of them made for this.

A `Scene` holds them, and its `facts` tell the attacks where they are. Nothing of anybody else's is touched.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING, Any, Self

from osmoda.host import paths, syscalls
from osmoda.sandbox.battery import kernel
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.granted_paths import within

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE = "OSMODA_VERIFY"
"""The variable of the caller's that holds the secret."""

RESOLVER = "198.18.0.1"
_PROGRAM = "/usr/bin/true"
_IPC_CREAT, _IPC_EXCL, _IPC_RMID = 0o1000, 0o2000, 0
_FIRST_PID = 1000  # above all that a sandbox counts up to before its attackers are many

# Lets itself be traced, as Yama would have it (PR_SET_PTRACER), and says where the secret lies in its memory.
_VICTIM = """
import ctypes, os, signal
secret = ctypes.create_string_buffer(os.environ["OSMODA_VERIFY"].encode())
ctypes.CDLL(None).prctl(0x59616d61, ctypes.c_ulong(-1 & (1 << 64) - 1), 0, 0, 0)
print(ctypes.addressof(secret), flush=True)
while True:
    signal.pause()
"""


class Scene:
    """A context manager. All that it makes lies below `top`; `folder` is the part that no sandbox is given."""

    def __init__(self, granted: tuple[str, ...] = ()) -> None:
        """`granted` are trees that a sandbox is shown: the scene lies in none of them. Raises SandboxError."""
        self._base = _place_outside(granted)
        self.token = secrets.token_hex(16)
        self.top = self.folder = ""
        self._exits = contextlib.ExitStack()
        self._services: list[tuple[socket.socket, bool]] = []
        self._facts: dict[str, Any] = {}
        self.victim = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as exits:
            self.top = exits.enter_context(_folder(self._base))
            for name in ("scratch", "work", "layer", "layer/upper", "layer/work"):
                os.mkdir(os.path.join(self.top, name), 0o700)
            self.folder = f"{self.top}/private"
            os.mkdir(self.folder, 0o755)
            self._write("secret")
            self._facts = {
                "token": self.token,
                "folder": self.folder,
                "secret": f"{self.folder}/secret",
                "shm_file": exits.enter_context(self._shared_file()),
                "shm_key": exits.enter_context(self._shared_segment()),
                "program": _PROGRAM,
                "resolver": RESOLVER,
                "groups": next((place for place in _GROUPS if os.path.exists(f"{place}/cgroup.procs")), ""),
                "release_agent": next((path for path in _AGENTS if os.path.exists(path)), ""),
                **exits.enter_context(self._processes()),
                **self._listen(exits),
            }
            exits.enter_context(self._serving())
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def facts(self, *, inside: bool, number: int = 0) -> dict[str, Any]:
        """The facts for attacks inside a sandbox, or outside. `number` tells several rounds of attacks apart."""
        place = {"scratch": "/tmp", "init": 1} if inside else {"scratch": f"{self.top}/scratch"}
        return {**self._facts, **place, "inside": inside, "daemon": self.daemon(inside=inside, number=number)}

    @contextlib.contextmanager
    def open_folder(self) -> Iterator[int]:
        """A descriptor of the folder, for a launcher to inherit as by mistake."""
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)

    def daemon(self, *, inside: bool, number: int = 0) -> str:
        """The name of the process that tries to stay; 15 bytes at most (PR_SET_NAME)."""
        return f"os-{self.token[:8]}-{number:x}{'i' if inside else 'o'}"

    def environment(self) -> dict[str, str]:
        """The caller's environment, with the secret in it."""
        return {**os.environ, VARIABLE: self.token}

    def _write(self, name: str) -> None:
        path = os.path.join(self.folder, name)
        with open(path, "x", encoding="ascii") as file:
            file.write(f"{self.token}\n")
        os.chmod(path, 0o644)

    @contextlib.contextmanager
    def _shared_file(self) -> Iterator[str]:
        path = f"/dev/shm/osmoda-{secrets.token_hex(8)}"
        with open(path, "x", encoding="ascii") as file:
            file.write(self.token)
        try:
            yield path
        finally:
            os.unlink(path)

    @contextlib.contextmanager
    def _shared_segment(self) -> Iterator[int]:
        """The key of a System V segment that everybody may read (shmget(2)); 0 where the kernel has none."""
        key = secrets.randbits(30) | 1
        try:
            identifier = kernel.call("shmget", key, 4096, _IPC_CREAT | _IPC_EXCL | 0o644)
        except kernel.Refused:
            yield 0
            return
        try:
            address = kernel.call("shmat", identifier, 0, 0)
            syscalls.overwrite(address, 4096, self.token.encode())
            kernel.call("shmdt", address)
            yield key
        finally:
            kernel.call("shmctl", identifier, _IPC_RMID, 0)

    @contextlib.contextmanager
    def _processes(self) -> Iterator[dict[str, Any]]:
        """One to look into, and one that stands for pid 1: it runs a copy of a program, in namespaces of its own."""
        environment = {VARIABLE: self.token}
        copy = os.path.join(self.folder, "launcher-copy")
        shutil.copy("/usr/bin/sleep", copy)
        # What counts its pids from 1 must not have one of this number.
        while (spare := _spare_pid()) < _FIRST_PID:
            del spare
        with contextlib.ExitStack() as exits:
            victim = exits.enter_context(
                _ended(
                    subprocess.Popen(
                        [sys.executable, "-I", "-S", "-c", _VICTIM],
                        cwd=self.folder,
                        env=environment,
                        start_new_session=True,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                    )
                )
            )
            assert victim.stdout is not None
            address = int(victim.stdout.readline() or b"0")
            if not address:
                raise OSError(3, "the process to look into did not start")
            self.victim = victim.pid
            init = exits.enter_context(
                _ended(
                    subprocess.Popen(
                        [copy, "1000"],
                        cwd=self.folder,
                        env=environment,
                        start_new_session=True,
                        stdin=subprocess.DEVNULL,
                        preexec_fn=_apart,  # noqa: PLW1509 - before any thread is started
                    )
                )
            )
            yield {"victim": victim.pid, "address": address, "init": init.pid}

    def _listen(self, exits: contextlib.ExitStack) -> dict[str, Any]:
        """Services that greet with the secret; an address is None where this host has none of the kind."""
        abstract = f"osmoda-{secrets.token_hex(8)}"
        path = os.path.join(self.folder, "service.sock")
        for name in (f"\0{abstract}", path):
            unix = exits.enter_context(socket.socket(socket.AF_UNIX))
            unix.bind(name)
            self._serve(unix)
        os.chmod(path, 0o666)  # noqa: S103 - whoever is outside may connect
        own = _own_address()
        return {
            "abstract": abstract,
            "unix": path,
            "tcp-loopback": self._internet(exits, "127.0.0.1"),
            "tcp-loopback6": self._internet(exits, "::1"),
            "tcp-address": self._internet(exits, own),
            "udp": self._internet(exits, "127.0.0.1", socket.SOCK_DGRAM),
            "name-server": self._internet(exits, own, socket.SOCK_DGRAM),
        }

    def _internet(
        self, exits: contextlib.ExitStack, host: str, kind: socket.SocketKind = socket.SOCK_STREAM
    ) -> tuple[str, int] | None:
        if not host:
            return None
        made = exits.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind))
        try:
            made.bind((host, 0))
        except OSError:
            return None  # no IPv6 on this loopback, for instance: there is then no control either
        self._serve(made)
        return host, made.getsockname()[1]

    def _serve(self, listener: socket.socket) -> None:
        stream = listener.type == socket.SOCK_STREAM
        if stream:
            listener.listen()
        self._services.append((listener, stream))

    @contextlib.contextmanager
    def _serving(self) -> Iterator[None]:
        """Greet, until the end of the block."""
        stop, stopped = socket.socketpair()
        thread = threading.Thread(target=self._greet, args=(stopped,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.close()
            thread.join()
            stopped.close()

    def _greet(self, stopped: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(stopped, selectors.EVENT_READ)
            for listener, stream in self._services:
                listener.setblocking(False)
                selector.register(listener, selectors.EVENT_READ, stream)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is stopped:
                        return
                    assert isinstance(key.fileobj, socket.socket)
                    # A client that has gone again is no reason to stop greeting the others.
                    with contextlib.suppress(OSError):
                        self._greet_one(key.fileobj, stream=key.data)

    def _greet_one(self, listener: socket.socket, *, stream: bool) -> None:
        greeting = self.token.encode()
        if stream:
            with listener.accept()[0] as client:
                client.sendall(greeting)
        else:
            _, sender = listener.recvfrom(512)
            listener.sendto(greeting, sender)


_GROUPS = ("/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids", "/sys/fs/cgroup")
_AGENTS = ("/sys/fs/cgroup/memory/release_agent", "/sys/fs/cgroup/pids/release_agent")


def _apart() -> None:
    os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWUTS)


def _spare_pid() -> int:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def _folder(base: str) -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="osmoda-verify-", dir=base)
    os.chmod(path, 0o755)  # noqa: S103 - the control may be somebody else by then
    try:
        yield path
    finally:
        # overlayfs leaves a directory of mode 000, which an ordinary user must open before it can be removed.
        for folder, names, _ in os.walk(path):
            for name in names:
                if not os.path.islink(os.path.join(folder, name)):
                    os.chmod(os.path.join(folder, name), 0o700)
        shutil.rmtree(path)


def _place_outside(granted: tuple[str, ...]) -> str:
    """A folder for temporary files that is in none of these trees."""
    candidates = (tempfile.gettempdir(), "/tmp", "/var/tmp", paths.directory("state"))
    for place in candidates:
        real = os.path.realpath(place)
        if os.path.isdir(real) and os.access(real, os.W_OK) and not any(within(real, tree) for tree in granted):
            return real
    raise SandboxError(f"every place for temporary files is granted ({', '.join(candidates)}): no secret can be kept")


def _own_address() -> str:
    """An address of this host beside the loopback's; empty where it has none. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])
