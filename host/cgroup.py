"""Control groups: a subtree for one sandbox, with its limits set before anything runs in it.

v2 where the controllers are there (cgroups(7), Documentation/admin-guide/cgroup-v2.rst), else the v1 controllers. The
group is made below the one this process is in, so a delegated subtree is enough and no other program's group is
touched. Where that is not possible but systemd can be asked for a scope, `find` says so (see systemd_scope.py).
"""

from __future__ import annotations

import fcntl
import posix

from osmoda.host import delegation, syscalls
from osmoda.host.delegation import read_file as _read
from osmoda.host.frozen import frozen

_ROOT = "/sys/fs/cgroup"
_CONTROLLERS = ("memory", "cpu", "pids")
_ENOENT, _EBUSY, _EINVAL = 2, 16, 22


@frozen
class Hierarchy:
    """Where limits can be set: `places` pairs a controller with the directory new groups are made in.

    `scope`: systemd has to be asked for the place first, and the directories are still empty strings.
    """

    version: int
    places: tuple[tuple[str, str], ...]
    scope: bool = False

    def has(self, controller: str) -> bool:
        """Whether a limit of `controller` can be set here."""
        return any(name == controller for name, _ in self.places)


_settled: Hierarchy | None = None
_leaf = ""
_lock = -1
_scope = ""
_refusal = ""


def find() -> Hierarchy:
    """The hierarchy that this process may make groups in; without any, `places` is empty."""
    if _settled is not None:
        return _settled
    unified, named = _own_groups()
    v1 = []
    for controller in _CONTROLLERS:
        if controller in named:
            place = f"{_ROOT}/{controller}{named[controller]}".rstrip("/")
            if _writable(place):
                v1.append((controller, place))
    if v1:
        return Hierarchy(1, tuple(v1))
    for mount in (_ROOT, _ROOT + "/unified"):
        place = delegation.place(mount, (mount + unified).rstrip("/"), _scope)
        if place:
            return Hierarchy(2, tuple([(name, place) for name in delegation.controllers(place)]))
    offered = () if _refusal else delegation.offered(_ROOT)
    if offered:
        return Hierarchy(2, tuple([(name, "") for name in offered]), True)
    return Hierarchy(0, ())


def enter_scope(unit: str) -> bool:
    """This process has been moved into the scope `unit`, which is delegated to it: whether groups can be made there."""
    global _scope
    _scope = unit
    found = find()
    return bool(found.places) and not found.scope


def refuse_scopes(reason: str) -> None:
    """From now on `find` offers no scope in this process: systemd was asked, and `reason` says why there is none.

    An empty `reason` takes that back.
    """
    global _refusal
    _refusal = reason


def refusal() -> str:
    """Why systemd has given this process no scope, in words; empty when it was not asked or did."""
    return _refusal


def settle(hierarchy: Hierarchy) -> None:
    """Make room for groups in `hierarchy`, and keep to it: `find` gives it from now on.

    A v2 group with processes in it hands no controllers down (cgroup-v2.rst, "No Internal Process Constraint"), so
    that this process, where it is in the place itself, moves into a leaf of its own. Raises OSError naming the file
    when that fails; nothing is changed then.
    """
    global _settled, _leaf, _lock
    if _settled is not None or hierarchy.version != 2:
        return
    place = hierarchy.places[0][1]
    if delegation.holds_this_process(place) and not delegation.is_root(place):
        leaf = f"{place}/osmoda-monitor-{posix.getpid():x}"
        lock = posix.open(place, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
        try:
            # Whoever takes controllers away at the end must be the only one who has handed them down.
            _flock(lock, place)
            # It exists when an earlier process had this pid, and its janitor was killed as well.
            if not posix.access(leaf, posix.F_OK):
                _mkdir(leaf)
            try:
                _write(leaf + "/cgroup.procs", "0")
            except OSError:
                posix.rmdir(leaf)
                raise
        except OSError:
            posix.close(lock)
            raise
        _leaf, _lock = leaf, lock
    _settled = hierarchy


def leave() -> bool:
    """Undo `settle` when the last group is removed; false while there is one, or another process in the leaf.

    A place that systemd has made is left as it is: systemd removes it, leaf and all, with its last process. To leave
    twice, or without having settled, is no error.
    """
    global _settled, _leaf, _lock
    if not _leaf or _settled is None:
        return True
    place = _settled.places[0][1]
    if _scope or delegation.is_marked(place):
        return True
    with posix.scandir(place) as entries:
        if any(entry.is_dir() and entry.path != _leaf for entry in entries):
            return False  # what limits there are must stay
    if active := _read(place + "/cgroup.subtree_control").split():
        _write(place + "/cgroup.subtree_control", " ".join([f"-{name}" for name in active]))
    if not delegation.holds_this_process(place):
        _write(place + "/cgroup.procs", "0")
    if not Group(2, (_leaf,)).remove():
        return False
    posix.close(_lock)
    _settled, _leaf, _lock = None, "", -1
    return True


def keep_lock(fd: int) -> int:
    """Put the lock that keeps other launchers out of the place at `fd`; the lowest descriptor that is then free.

    For a child that closes all others but is to `leave` when this process has died.
    """
    global _lock
    if _lock < 0:
        return fd
    _lock = posix.dup2(_lock, fd, inheritable=False)
    return fd + 1


def _flock(fd: int, place: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise syscalls.explained(error, f"flock {place}") from None


def own_group() -> str:
    """The v2 group that this process is in, as a path from the root of its cgroup namespace."""
    return _own_groups()[0]


def _own_groups(pid: int | str = "self") -> tuple[str, dict[str, str]]:
    unified, named = "/", {}
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            unified = path
        else:
            for controller in controllers.split(","):
                named[controller] = path
    return unified, named


def _writable(path: str) -> bool:
    return posix.access(path, posix.W_OK | posix.X_OK)


def _write(path: str, value: str) -> None:
    try:
        fd = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC)
        try:
            posix.write(fd, value.encode())
        finally:
            posix.close(fd)
    except OSError as error:
        raise syscalls.explained(error, f"write {value} to {path}") from None


def _mkdir(path: str) -> None:
    try:
        posix.mkdir(path, 0o755)
    except OSError as error:
        raise syscalls.explained(error, f"mkdir {path}") from None


class Group:
    """One sandbox's control group. Use `create`; `remove` when the last process is gone."""

    def __init__(self, version: int, directories: tuple[str, ...]) -> None:
        self.version = version
        self.directories = directories

    @classmethod
    def named(cls, hierarchy: Hierarchy, name: str, memory: int, cpu: float, pids: int) -> Group:
        """The group that `create` makes of the same, made or not: for whoever has to know of it beforehand."""
        if hierarchy.version == 2:
            return cls(2, (f"{hierarchy.places[0][1]}/{name}",))
        wanted = {"memory": memory, "cpu": cpu, "pids": pids}
        return cls(hierarchy.version, tuple([f"{place}/{name}" for kind, place in hierarchy.places if wanted[kind]]))

    @classmethod
    def create(cls, hierarchy: Hierarchy, name: str, memory: int, cpu: float, pids: int) -> Group:
        """Make a group with its limits: bytes, cores, processes; 0 means no limit of that kind.

        Raises OSError naming the file, or the controller that is missing; nothing is left behind then.
        """
        for controller, wanted in (("memory", memory), ("cpu", cpu), ("pids", pids)):
            if wanted and not hierarchy.has(controller):
                raise OSError(_ENOENT, f"no cgroup with the {controller} controller is delegated to this process")
        made: list[str] = []
        try:
            if hierarchy.version == 2:
                place = hierarchy.places[0][1]
                _delegate(place, [c for c, wanted in (("memory", memory), ("cpu", cpu), ("pids", pids)) if wanted])
                path = f"{place}/{name}"
                _mkdir(path)
                made.append(path)
                if memory:
                    _write(path + "/memory.max", str(memory))
                    _bound_swap(path, "memory.swap.max", 0)
                    _write(path + "/memory.oom.group", "1")
                if cpu:
                    _write(path + "/cpu.max", " ".join(map(str, _quota(cpu))))
                if pids:
                    _write(path + "/pids.max", str(pids))
            else:
                for controller, place in hierarchy.places:
                    wanted = {"memory": memory, "cpu": cpu, "pids": pids}[controller]
                    if not wanted:
                        continue
                    path = f"{place}/{name}"
                    _mkdir(path)
                    made.append(path)
                    if controller == "memory":
                        _write(path + "/memory.limit_in_bytes", str(memory))
                        _bound_swap(path, "memory.memsw.limit_in_bytes", memory)
                    elif controller == "cpu":
                        quota, period = _quota(cpu)
                        _write(path + "/cpu.cfs_period_us", str(period))
                        _write(path + "/cpu.cfs_quota_us", str(quota))
                    else:
                        _write(path + "/pids.max", str(pids))
        except OSError:
            cls(hierarchy.version, tuple(made)).remove()
            raise
        return cls(hierarchy.version, tuple(made))

    def open_for_join(self) -> tuple[int, ...]:
        """Descriptors for `join`: opened here, used by the child (the v1 kernel stalls when another writes its pid)."""
        name = "/cgroup.procs" if self.version == 2 else "/tasks"
        opened: list[int] = []
        for path in self.directories:
            try:
                opened.append(posix.open(path + name, posix.O_WRONLY | posix.O_CLOEXEC))
            except OSError as error:
                for fd in opened:
                    posix.close(fd)
                raise syscalls.explained(error, f"open {path}{name}") from None
        return tuple(opened)

    def oom_kills(self) -> int:
        """How often the kernel has killed in the group for want of memory: a process, or in version 2 all at once."""
        for path in self.directories:
            text = _read(path + ("/memory.events" if self.version == 2 else "/memory.oom_control"))
            counters = dict([line.split() for line in text.splitlines()])
            # `oom_kill` counts the first of those killed together twice; before Linux 5.17 there is nothing better.
            for name in ("oom_group_kill", "oom_kill"):
                if kills := int(counters.get(name, "0")):
                    return kills
        return 0

    def pids_refused(self) -> int:
        """How many forks the group's limit has refused."""
        for path in self.directories:
            for line in _read(path + "/pids.events").splitlines():
                if line.startswith("max "):
                    return int(line.split()[1])
        return 0

    def peak_memory(self) -> int:
        """The group's highest memory use so far in bytes, 0 when the kernel does not say."""
        for path in self.directories:
            name = "/memory.peak" if self.version == 2 else "/memory.max_usage_in_bytes"
            text = _read(path + name).strip()
            if text.isdigit():
                return int(text)
        return 0

    def processes(self) -> tuple[int, ...]:
        """The pids in the group."""
        return tuple({int(pid) for path in self.directories for pid in _read(path + "/cgroup.procs").split()})

    def kill(self) -> None:
        """SIGKILL to all in the group: `cgroup.kill` where the kernel has it, else until none is left to signal."""
        if self.version == 2 and posix.access(self.directories[0] + "/cgroup.kill", posix.W_OK):
            _write(self.directories[0] + "/cgroup.kill", "1")
            return
        for pid in self.processes():
            try:
                posix.kill(pid, 9)
            except ProcessLookupError:
                continue

    def remove(self) -> bool:
        """Remove the group; false while a process is still in it."""
        for path in reversed(self.directories):
            try:
                posix.rmdir(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno == _EBUSY:
                    return False
                raise
        return True


def _quota(cpu: float) -> tuple[int, int]:
    """Microseconds of CPU in each period of so many, for `cpu` cores. Raises OSError for what the kernel cannot bound.

    It takes no quota below a millisecond and no period above a second (Documentation/scheduler/sched-bwc.rst).
    """
    period = 100_000 if cpu >= 0.01 else 1_000_000
    # Of a number such as 0.29, which is a little less in binary.
    quota = int(cpu * period + 1e-6)
    if quota < 1000:
        raise OSError(_EINVAL, f"{cpu:g} processor cores: the kernel bounds no fewer than 0.001")
    return quota, period


def _bound_swap(path: str, name: str, value: int) -> None:
    """Let memory beyond the limit not go to swap. Raises OSError where the kernel has some and does not count it."""
    if posix.access(f"{path}/{name}", posix.W_OK):
        _write(f"{path}/{name}", str(value))
    elif len(_read("/proc/swaps").splitlines()) > 1:
        raise OSError(
            _ENOENT,
            f"there is no {name}: this kernel does not count swap, where what is beyond the limit would go "
            "(swapoff, or swapaccount=1 on its command line)",
        )


def of_process(pid: int, name: str) -> Group:
    """The group `name` that `pid` is in; one without directories, of which nothing is known, when it is in none.

    For its numbers: it is not the caller's to remove.
    """
    unified, named = _own_groups(pid)
    if unified.endswith(f"/{name}"):
        mount = _ROOT if posix.access(f"{_ROOT}{unified}", posix.F_OK) else f"{_ROOT}/unified"
        return Group(2, (f"{mount}{unified}",))
    return Group(1, tuple([f"{_ROOT}/{kind}{path}" for kind, path in named.items() if path.endswith(f"/{name}")]))


def _delegate(place: str, controllers: list[str]) -> None:
    """Let groups below `place` have `controllers` (cgroup.subtree_control)."""
    active = _read(place + "/cgroup.subtree_control").split()
    missing = [f"+{name}" for name in controllers if name not in active]
    if missing:
        _write(place + "/cgroup.subtree_control", " ".join(missing))


def join(descriptors: tuple[int, ...]) -> None:
    """Move the calling process into the group whose `open_for_join` these are."""
    for fd in descriptors:
        posix.write(fd, b"0")
        posix.close(fd)
