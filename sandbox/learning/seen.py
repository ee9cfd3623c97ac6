"""What an observed run did, as far as it matters to a profile."""

from __future__ import annotations

from dataclasses import dataclass, field

READ, LIST, WRITE, ENTRY, PROBE, LINK, STAT, LISTED = 1, 2, 4, 8, 16, 32, 64, 128
"""Read a file, list a folder, change a file, make or remove names in a folder, only look whether a folder is there,
pass a symbolic link, only look whether a file is there and of what kind, only pass or come to what a symbolic link that
a list had named led to."""

MOST_PATHS = 500_000
_MOST_PROGRAMS = 3


@dataclass(slots=True)
class Use:
    """What was done with one path. `relative`: it was named from the current directory."""

    kinds: int = 0
    count: int = 0
    programs: list[str] = field(default_factory=list)
    relative: bool = False

    def add(self, kind: int, program: str, *, relative: bool = False) -> None:
        """Once more."""
        self.kinds |= kind
        self.count += 1
        self.relative |= relative
        if program not in self.programs and len(self.programs) < _MOST_PROGRAMS:
            self.programs.append(program)


@dataclass(slots=True)
class Seen:
    """Everything; paths are bytes, without links, as the sandbox names them.

    `failed` are names that were refused with EACCES, EPERM or EROFS, or were not found although the host has them.
    `links` maps each symbolic link that was passed to where it led. `addresses` are connections to an address that
    stands for no name: (text, port). `calls` are system calls outside the floor that every sandbox has. `threads` is
    the most that were there at once, `descriptor` the highest, `scratch` the most bytes in the private folders.
    """

    paths: dict[bytes, Use] = field(default_factory=dict)
    failed: dict[bytes, Use] = field(default_factory=dict)
    links: dict[bytes, bytes] = field(default_factory=dict)
    calls: dict[str, Use] = field(default_factory=dict)
    families: dict[str, Use] = field(default_factory=dict)
    addresses: dict[tuple[str, int], Use] = field(default_factory=dict)
    sockets: dict[bytes, Use] = field(default_factory=dict)
    listening: dict[tuple[str, int], Use] = field(default_factory=dict)
    loopback: Use = field(default_factory=Use)
    threads: int = 0
    descriptor: int = 0
    scratch: int = 0
    unreadable: int = 0
    too_many: bool = False

    def path(self, path: bytes, kind: int, program: str, *, relative: bool = False) -> None:
        """`path` was used."""
        self._in(self.paths, path, kind, program, relative)

    def fail(self, path: bytes, kind: int, program: str) -> None:
        """`path` was asked for in vain."""
        self._in(self.failed, path, kind, program, False)

    def _in(self, table: dict[bytes, Use], path: bytes, kind: int, program: str, relative: bool) -> None:
        use = table.get(path)
        if use is None:
            if len(table) >= MOST_PATHS:
                self.too_many = True
                return
            use = table[path] = Use()
        use.add(kind, program, relative=relative)
