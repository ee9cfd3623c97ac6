"""The log: one JSON object a line for each connection, request, question and refused name.

Every gateway of a user appends to one file, `connections.jsonl`. Whoever writes holds the file's lock (flock(2)) and
has checked that the file still bears the name, so that lines are whole and one process at a time moves a full file
aside. No record is worth a connection: what cannot be written (a full disk, a folder that is gone, a lock that is
held too long) is counted, and the next record that can be written says how many were lost before it.
"""

from __future__ import annotations

import fcntl
import posix
import time

from osmoda.host import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Protocol

    class _Timer(Protocol):
        def cancel(self) -> None: ...


NAME = "connections.jsonl"
MOST_BYTES = 64 << 20  # of one file
KEPT = 4  # full files: connections.jsonl.1 (the newest) to .4
LONGEST_LINE = 4096  # PIPE_BUF: also a pipe that the file is followed into gets lines whole

_BATCH = 100  # records
_DELAY = 0.05  # seconds
_MOST_WAITING = 10_000  # records, while another process holds the lock
_PATIENCE = 1.0  # seconds, for the lock, at the end
_LENGTHS = (1024, 256, 64, 8)  # characters of a text; the first with which the line is short enough
_LONGEST_REASON = 300
_FLAGS = posix.O_RDWR | posix.O_APPEND | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NOFOLLOW


def folder() -> str:
    """Where this user's gateways log, made where it is missing; empty when there is no place that is theirs alone."""
    try:
        return paths.own_directory("state", "egress")
    except (OSError, paths.UntrustedDirectory):
        return ""


class Log:
    """The writing end, for one thread. `folder` is a path, or a descriptor that stays the caller's; "" keeps nothing.

    `watchers` are called with each record; they must not raise or block. `lost` counts the records that were not kept.
    """

    def __init__(self, folder: str | int, *, most: int = MOST_BYTES) -> None:
        self.watchers: set[Callable[[Mapping[str, object]], None]] = set()
        self.lost = 0
        self._path = folder if isinstance(folder, str) else ""
        self._folder = folder if isinstance(folder, int) else -1
        self._most = most
        self._fd = -1
        self._lines: list[bytes] = []
        self._unsaid = 0
        self._later: Callable[[float, Callable[[], None]], _Timer] | None = None
        self._timer: _Timer | None = None

    def batch(self, call_later: Callable[[float, Callable[[], None]], _Timer]) -> None:
        """Keep up to 100 records for up to 50 ms, and write them at once; `call_later` is a loop's."""
        self._later = call_later

    def open(self) -> None:
        """Open the file now rather than at the first record, for a process that is about to be confined.

        To move full files aside, it must be allowed to open, make, rename, truncate and remove files of the folder.
        Raises OSError.
        """
        encode({})
        self._open()

    def write(self, record: Mapping[str, object]) -> None:
        """Keep a record: texts, numbers, truth values and None; never raises."""
        if len(self._lines) < _MOST_WAITING:
            self._lines.append(encode(record))
        else:
            self._lose(1)
        for watcher in tuple(self.watchers):
            watcher(record)
        if self._later is None or len(self._lines) == _BATCH:
            self.flush()
        elif self._timer is None:
            self._timer = self._later(_DELAY, self._due)

    def _due(self) -> None:
        self._timer = None
        self.flush()

    def flush(self) -> None:
        """Write what waits, unless another process holds the lock at this moment: then a little later."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._lines:
            return
        try:
            if self._lock():
                lines, self._lines = self._lines, []
                self._append(lines)
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        except OSError:
            self._lose(len(self._lines))
            self._lines.clear()
            self._close_file()
        if self._lines and self._later is not None:
            self._timer = self._later(_DELAY, self._due)

    def close(self) -> None:
        """Write what waits, and close the file."""
        end = time.monotonic() + _PATIENCE
        self.flush()
        while self._lines and time.monotonic() < end:
            time.sleep(0.002)
            self.flush()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._lose(len(self._lines))
        self._lines.clear()
        self.watchers.clear()
        self._close_file()
        if self._path and self._folder >= 0:
            posix.close(self._folder)
            self._folder = -1

    def _lose(self, count: int) -> None:
        self.lost += count
        self._unsaid += count

    def _open(self) -> None:
        if self._folder < 0:
            if not self._path:
                raise FileNotFoundError(2, "there is no folder for the log")
            self._folder = posix.open(self._path, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        if self._fd < 0:
            self._fd = posix.open(NAME, _FLAGS, 0o600, dir_fd=self._folder)
            status = posix.fstat(self._fd)
            if status.st_mode & 0o170000 != 0o100000 or status.st_uid != posix.geteuid():
                self._close_file()
                raise PermissionError(1, f"{NAME} is not a file of this user's")
            if status.st_mode & 0o077:
                posix.fchmod(self._fd, 0o600)

    def _close_file(self) -> None:
        if self._fd >= 0:
            posix.close(self._fd)
            self._fd = -1

    def _lock(self) -> bool:
        """Hold the lock of the file that bears the name, with room in it. False when another process has the lock."""
        while True:
            self._open()
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            here = posix.fstat(self._fd)
            try:
                there = posix.stat(NAME, dir_fd=self._folder, follow_symlinks=False)
            except FileNotFoundError:
                there = None
            if there is not None and (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                if here.st_size < self._most:
                    return True
                self._move_aside()
            # Closing it also gives up its lock: whoever waits finds that the name belongs to another file.
            self._close_file()

    def _move_aside(self) -> None:
        names = [NAME, *[f"{NAME}.{number}" for number in range(1, KEPT + 1)]]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            try:
                posix.rename(newer, older, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            except FileNotFoundError:
                continue

    def _append(self, lines: list[bytes]) -> None:
        """Write the lines to the locked file; what does not fit on the disk is lost, from the first torn line on."""
        unsaid = self._unsaid
        if unsaid:
            lines[0] = b'%s,"lost":%d}\n' % (lines[0][:-2], unsaid)
        content = b"".join(lines)
        size = posix.fstat(self._fd).st_size
        if size and posix.pread(self._fd, 1, size - 1) != b"\n":
            # Whoever wrote before was killed within a line.
            content = b"\n" + content
        written = 0
        try:
            while written < len(content):
                written += posix.write(self._fd, content[written:] if written else content)
        except OSError:
            whole = content.rfind(b"\n", 0, written) + 1
            self._lose(content.count(b"\n", whole))
            if whole < written:
                posix.truncate(self._fd, size + whole)
            written = whole
        if unsaid and written:
            self._unsaid -= unsaid


def encode(record: Mapping[str, object]) -> bytes:
    """A record as one line of JSON (RFC 8259), all ASCII, at most 4096 bytes long; texts are cut to make it so."""
    global _encoder
    if _encoder is None:
        _encoder = _make_encoder()
    reason = record.get("reason", "")
    if isinstance(reason, str) and len(reason) <= _LONGEST_REASON:
        try:
            line = "".join(_encoder(record, 0))
            if len(line) < _LENGTHS[0]:  # so is each text
                return (line + "\n").encode()
        except ValueError:
            pass  # a number that JSON has no word for
    for most in _LENGTHS:
        cut = {
            str(key): _cut(value, min(most, _LONGEST_REASON) if key == "reason" else most)
            for key, value in record.items()
        }
        line = "".join(_encoder(cut, 0))
        if len(line) < LONGEST_LINE:
            return (line + "\n").encode()
    return encode({"event": record.get("event"), "reason": f"a record of {len(record)} members is too long"})


_encoder: Callable[[object, int], tuple[str, ...]] | None = None


def _make_encoder() -> Callable[[object, int], tuple[str, ...]]:
    # The C half of the module json; importing its Python half takes longer than starting a sandbox.
    from _json import encode_basestring_ascii, make_encoder

    # No check for circles; other types as `str` has them; no indent; separators; as it comes; all keys; no NaN.
    return make_encoder(None, _text, encode_basestring_ascii, None, ":", ",", False, False, False)


def _text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _cut(value: object, most: int) -> object:
    if isinstance(value, (list, tuple)):
        return [_cut(item, most) for item in value]
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None  # neither infinite nor no number
    text = value if isinstance(value, str) else _text(value)
    return text if len(text) <= most else text[: most - 1] + "…"
