"""A file system whose answers come when the test wants, or never: the protocol of /dev/fuse, spoken by hand (fuse(4)).

    with fuse.mounted(folder, {"agent.toml": b"schema = 1"}) as served:
        served.stop("READ")       # from now on every request of that kind is read, and not answered
        served.delay(0.1)         # each answer comes that many seconds later

It holds files in one folder, in memory. A request that was read and is not answered keeps whoever asked, even when that
is killed; `abort` (/sys/fs/fuse/connections/N/abort) ends all of them, and `mounted` does that at its end whatever
happened.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_CONTROL = Path("/sys/fs/fuse/connections")
_IN = struct.Struct("<IIQQIIII")  # len, opcode, unique, nodeid, uid, gid, pid, extensions
_OUT = struct.Struct("<IiQ")  # len, error, unique
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_MS_NOSUID_NODEV = 0x2 | 0x4
_MNT_DETACH = 2
_ROOT = 1

OPCODES = {
    1: "LOOKUP", 2: "FORGET", 3: "GETATTR", 5: "READLINK", 14: "OPEN", 15: "READ", 17: "STATFS", 18: "RELEASE",
    22: "GETXATTR", 23: "LISTXATTR", 25: "FLUSH", 26: "INIT", 27: "OPENDIR", 28: "READDIR", 29: "RELEASEDIR",
    34: "ACCESS", 36: "INTERRUPT", 38: "DESTROY", 42: "BATCH_FORGET", 44: "READDIRPLUS", 52: "STATX",
}  # fmt: skip
_UNANSWERED = {"FORGET", "BATCH_FORGET", "INTERRUPT"}


class Served:
    """The server: a thread that reads requests. `asked` are the kinds it has read so far, `hung` those it let hang."""

    def __init__(self, device: int, files: Mapping[str, bytes], uid: int) -> None:
        self.asked: list[str] = []
        self.hung = threading.Event()
        self._device = device
        self._files = list(files.items())
        self._uid = uid
        self._stopped: frozenset[str] = frozenset()
        self._answers = 0
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._serve, name="fuse", daemon=True)
        self._thread.start()

    def stop(self, *kinds: str, after: int = 0) -> None:
        """Answer no request of `kinds` any more once `after` more have been answered; without any, none at all."""
        self._answers = after
        self._stopped = frozenset(kinds or OPCODES.values())

    def delay(self, seconds: float) -> None:
        self._seconds = seconds

    def join(self) -> None:
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, 1 << 17)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return  # ENODEV: it was unmounted, or aborted
            _, opcode, unique, node, *_ = _IN.unpack_from(request)
            kind = OPCODES.get(opcode, str(opcode))
            self.asked.append(kind)
            if kind in _UNANSWERED:
                continue
            if kind in self._stopped:
                self._answers -= 1
                if self._answers < 0:
                    self.hung.set()
                    continue
            if self._seconds and kind != "INIT":
                time.sleep(self._seconds)
            answer = self._answer(kind, node, request[_IN.size :])
            body = answer if isinstance(answer, bytes) else b""
            number = answer if isinstance(answer, int) else 0
            with contextlib.suppress(OSError):  # ENOENT: it was interrupted meanwhile
                os.write(self._device, _OUT.pack(_OUT.size + len(body), -number, unique) + body)

    def _answer(self, kind: str, node: int, body: bytes) -> bytes | int:
        if kind == "INIT":
            major, minor, ahead, _ = struct.unpack_from("<IIII", body)
            # FUSE_INIT_EXT, and with it FUSE_ALLOW_IDMAP (Linux 6.12): root's sandboxes want idmapped mounts.
            flags = (1 << 30, 1 << 8) if minor >= 41 else (0, 0)
            sizes = (16, 12, 4096, 1, 1, 0)
            return struct.pack("<IIIIHHIIHH8I", major, minor, ahead, flags[0], *sizes, flags[1], *[0] * 7)
        if kind == "LOOKUP":
            name = body.rstrip(b"\0").decode()
            for number, (file, _) in enumerate(self._files, _ROOT + 1):
                if file == name:
                    # Nothing may be kept: each look is a question.
                    return struct.pack("<QQQQII", number, 1, 0, 0, 0, 0) + self._attributes(number)
            return errno.ENOENT
        if kind == "GETATTR":
            return struct.pack("<QII", 0, 0, 0) + self._attributes(node)
        if kind in ("OPEN", "OPENDIR"):
            return struct.pack("<QII", 0, 0, 0)
        if kind == "READ":
            _, offset, size = struct.unpack_from("<QQI", body)
            return self._files[node - _ROOT - 1][1][offset : offset + size]
        if kind == "READDIR":
            return b""
        if kind == "STATFS":
            return struct.pack("<QQQQQIIII6I", 1, 1, 1, 1, 1, 4096, 255, 4096, 0, *[0] * 6)
        if kind in ("RELEASE", "RELEASEDIR", "FLUSH", "ACCESS", "DESTROY"):
            return b""
        return errno.ENOSYS

    def _attributes(self, node: int) -> bytes:
        size = 0 if node == _ROOT else len(self._files[node - _ROOT - 1][1])
        mode = stat.S_IFDIR | 0o755 if node == _ROOT else stat.S_IFREG | 0o644
        return _ATTR.pack(node, size, 1, 0, 0, 0, 0, 0, 0, mode, 1, self._uid, self._uid, 0, 4096, 0)


@contextlib.contextmanager
def mounted(folder: Path, files: Mapping[str, bytes], uid: int = 0) -> Iterator[Served]:
    """Mount it at `folder`, its files owned by `uid`; at the end abort it and unmount it. As root."""
    folder.mkdir(exist_ok=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    if _libc.mount(b"osmoda-test", os.fsencode(folder), b"fuse.osmoda-test", _MS_NOSUID_NODEV, options.encode()):
        number = ctypes.get_errno()
        os.close(device)
        raise OSError(number, f"mount fuse {folder}: {os.strerror(number)}")
    connection = _connection(folder)
    served = Served(device, files, uid)
    try:
        yield served
    finally:
        abort(connection)
        served.join()
        _libc.umount2(os.fsencode(folder), _MNT_DETACH)
        os.close(device)


def _connection(folder: Path) -> int:
    """The number of its connection, from mountinfo: stat(2) would be a question already."""
    with open("/proc/self/mountinfo") as lines:
        for line in lines:
            fields = line.split()
            if fields[4] == os.fspath(folder).replace(" ", "\\040"):
                return int(fields[2].partition(":")[2])
    raise AssertionError(f"{folder} is not mounted")


def abort(connection: int) -> None:
    """End the connection: every request that waits fails (Documentation/filesystems/fuse.rst)."""
    with _control():
        (_CONTROL / str(connection) / "abort").write_text("1")


@contextlib.contextmanager
def _control() -> Iterator[None]:
    """fusectl in view, where it is not mounted already."""
    there = any(" fusectl " in line for line in Path("/proc/self/mountinfo").read_text().splitlines())
    if not there and _libc.mount(b"fusectl", os.fsencode(_CONTROL), b"fusectl", 0, None):
        number = ctypes.get_errno()
        raise OSError(number, f"mount fusectl: {os.strerror(number)}")
    try:
        yield
    finally:
        if not there:
            _libc.umount2(os.fsencode(_CONTROL), 0)
