"""The parent's half of a launch: prepare what needs the caller's rights, clone, map ids.

Standard library and `_ctypes` only, and few of those: this runs at every start. The process must be single-threaded:
a parent-death signal comes when the *thread* that cloned exits, and the child goes on in this interpreter.
"""

from __future__ import annotations

import _socket
import posix

from osmoda.host import cgroup, paths, syscalls
from osmoda.sandbox import answering, covers, errors, init, lease
from osmoda.sandbox.assignment import shown
from osmoda.sandbox.errors import LaunchError
from osmoda.sandbox.operations import Setup, isolation, mounting

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Iterator

    from osmoda.ledger.client import Ticket
    from osmoda.sandbox.attended import Life
    from osmoda.sandbox.doorway import Doorway
    from osmoda.sandbox.init import Command
    from osmoda.sandbox.janitor import Janitor
    from osmoda.sandbox.plan import Plan
else:
    import _signal

# 32 and 33 belong to the C library's threads.
_ALL_SIGNALS = (*range(1, 32), *range(34, 65))
_SIGCHLD = 17
_EINVAL = 22


class Launched:
    """A cloned child that is setting itself up. All descriptors are the monitor's to close."""

    __slots__ = (
        "agent", "command", "control", "covers", "doorway", "group", "identity", "lease", "pid", "pidfd", "plan",
        "recorded", "ticket",
    )  # fmt: skip

    def __init__(
        self,
        plan: Plan,
        command: Command,
        identity: str,
        pid: int,
        pidfd: int,
        control: _socket.socket,
        group: cgroup.Group | None,
        lease: int,
        doorway: Doorway | None,
        covers: tuple[bytes, ...] = (),
    ) -> None:
        self.plan = plan
        self.command = command
        self.identity = identity
        self.pid = pid
        self.pidfd = pidfd
        self.control = control
        self.group = group
        self.lease = lease
        self.doorway = doorway
        self.covers = covers
        self.agent = ""
        self.recorded = False
        """Whether its command waits until the launch is on the ledger."""
        self.ticket: Ticket | None = None
        """The launch on its way there; of one that waits for its command (`assignment`), when that has come."""


_counter = 0


def new_identity() -> str:
    """A name for one run, unique on this host while it lasts: the monitor's pid and a number."""
    global _counter
    _counter += 1
    return f"{posix.getpid():x}-{_counter:x}"


def launch(
    plan: Plan,
    command: Command,
    workspace: bytes,
    layer: bytes,
    layer_lock: int,
    identity: str,
    doorway: Doorway | None = None,
    observe: Callable[[int], None] | None = None,
    assignments: _socket.socket | None = None,
    terminal: bool = False,
    life: Life | None = None,
    agent: str = "",
) -> Launched:
    """Clone the child that will run `command` under `plan`.

    `workspace` is the canonical path of the workspace (empty for none), `layer` the directory of its overlay's layer
    (holding `upper` and `work`), `layer_lock` the descriptor of the lock on it (-1 for none), which pid 1 holds too.
    `doorway` is where a plan with a network gets out; it is the sandbox's from here on. `observe` is called with the
    child's pid before the child does anything; what it raises ends the child. With `assignments` the child waits for
    its command there (see assignment.py), with a terminal where `terminal` says so; it gets its doorway then, and one
    that is given here only says what is trusted inside. `life` is what becomes of pid 1 (see init.py). Where this user
    has a ledger the command waits until its launch is on it, under the name of `agent`.

    The child reports by messages (see init.py); a failure of its set-up comes there. Raises LaunchError when the
    parent's part fails; nothing is left behind then.
    """
    release: list[int] = []
    group: cgroup.Group | None = None
    control = inner = None
    held = -1
    launched: Launched | None = None
    complete = False
    try:
        if plan.egress and doorway is None and assignments is None:
            raise LaunchError("the plan has a network, and there is no gateway for it")
        answering.require(_looked_into(plan, workspace, layer))
        _refuse_directories(command)
        _refuse_threads()
        own_uid = any(type(op) is isolation.Identity and op.own_host_uid for op in plan.operations)
        uid = posix.geteuid()
        if own_uid:
            uid, held = lease.acquire()
        gid = uid if own_uid else posix.getegid()
        setup = Setup(workspace, layer, uid, gid, terminal or bool(command.terminals))
        if doorway is not None:
            setup.trust = doorway.trust
        if own_uid:
            _prepare_trees(plan, setup, release)
        if plan.memory or plan.cpu or plan.pids:
            group = _make_group(plan, identity)
        joins = group.open_for_join() if group else ()
        release.extend(joins)
        control, inner = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        leases = tuple([fd for fd in (held, layer_lock) if fd >= 0])
        title = f"osmoda-init {identity} tier-{plan.tier} {plan.name}".encode(errors="replace")
        covered = covers.points(plan.operations, workspace)
        recorded = paths.has_ledger()
        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _ALL_SIGNALS)
        try:
            pid, pidfd = syscalls.clone3(plan.unshared, _SIGCHLD)
            if pid == 0:
                try:
                    control.close()
                    waits = own_uid or observe is not None
                    init.enter(
                        plan.operations, setup, command, inner, joins, leases, waits, title, assignments, life, recorded
                    )
                finally:
                    posix._exit(125)
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
        launched = Launched(plan, command, identity, pid, pidfd, control, group, held, doorway, covered)
        if own_uid or observe is not None:
            try:
                if own_uid:
                    _map_ids(plan, pid, uid, gid)
                if observe is not None:
                    observe(pid)
                control.send(b"M")
            except OSError as error:
                raise errors.refused(error, " (identity)") from None
        if doorway is not None:
            doorway.drop_trust()
        if recorded:
            # Now, while the child sets itself up on another core.
            from osmoda.sandbox import recording

            launched.agent, launched.recorded = agent, True
            writer = recording.recorder()
            if assignments is None:
                launched.ticket = writer.launch(launched, *shown(command.argv))
        complete = True
        return launched
    except BaseException as error:
        if launched is not None:
            abandon(launched)
        else:
            if group is not None:
                _discard(group)
            if control is not None:
                control.close()
            if held >= 0:
                posix.close(held)
        if isinstance(error, (OSError, MemoryError, paths.UntrustedDirectory)):
            raise errors.refused(error) from None
        raise
    finally:
        if inner is not None:
            inner.close()
        for fd in release:
            posix.close(fd)
        if doorway is not None and not complete:
            doorway.close()


def abandon(launched: Launched) -> None:
    """Kill and reap a child, and give back all that its launch took."""
    syscalls.pidfd_send_signal(launched.pidfd, 9)
    posix.waitpid(launched.pid, 0)
    finish(launched)


def leave(launched: Launched) -> None:
    """Give back what does not depend on the end of a child that was killed and cannot end; `finish` comes later.

    Should that be after the end of this process, the janitor removes the control group.
    """
    launched.control.close()
    if launched.doorway is not None:
        launched.doorway.close()


def finish(launched: Launched) -> None:
    """Give back all that a launch took, once its child was reaped."""
    posix.close(launched.pidfd)
    leave(launched)
    if launched.group is not None:
        _discard(launched.group)
    if launched.lease >= 0:
        posix.close(launched.lease)


def _looked_into(plan: Plan, workspace: bytes, layer: bytes) -> Iterator[bytes]:
    """The paths of the host that are not the system's own."""
    yield from filter(None, (workspace, layer))
    for operation in plan.operations:
        if isinstance(operation, mounting.Grant):
            yield operation.path
    yield from covers.points(plan.operations, workspace)


def _refuse_directories(command: Command) -> None:
    """A directory among the streams would be a door to the host's tree (CVE-2024-21626)."""
    for name, fd in (("stdin", command.stdin), ("stdout", command.stdout), ("stderr", command.stderr)):
        try:
            mode = posix.fstat(fd).st_mode
        except OSError:
            raise LaunchError(f"{name} is closed; give the command one, /dev/null for instance") from None
        if mode & 0o170000 == 0o040000:
            raise LaunchError(f"{name} is a directory, which would let the command out of its root")


def _refuse_threads() -> None:
    if len(posix.listdir("/proc/self/task")) > 1:
        raise LaunchError("a sandbox is launched from a single-threaded process; osmoda.sandbox.Sandbox provides one")


_minding: Janitor | None = None


def _janitor() -> Janitor:
    global _minding
    if _minding is None:
        from osmoda.sandbox.janitor import Janitor

        _minding = Janitor()
    return _minding


def dismiss_janitor() -> None:
    """End the janitor, if there is one: this process has no sandbox any more."""
    global _minding
    if _minding is not None:
        _minding.close()
        _minding = None
        cgroup.leave()


def _discard(group: cgroup.Group) -> None:
    # The last process may still be on its way out of the group.
    while not group.remove():
        group.kill()
    if _minding is not None:
        _minding.release(group)


_hierarchy: cgroup.Hierarchy | None = None


def _make_group(plan: Plan, identity: str) -> cgroup.Group:
    global _hierarchy
    hierarchy = _hierarchy or _settle(identity)
    if hierarchy.version == 1:
        # Nobody moves this process; in v2 it may itself move in and out of a leaf.
        _hierarchy = hierarchy
    wanted = (hierarchy, f"osmoda-{identity}", plan.memory, plan.cpu, plan.pids)
    # Before it is there: should this process be killed in between, nobody else would know of it.
    named = cgroup.Group.named(*wanted)
    _janitor().mind(named)
    try:
        return cgroup.Group.create(*wanted)
    except OSError:
        _janitor().release(named)
        raise


def _settle(identity: str) -> cgroup.Hierarchy:
    """Where this process makes its groups."""
    cgroup.refuse_scopes("")  # a resident launcher asks each time
    hierarchy = cgroup.find()
    if hierarchy.scope:
        from osmoda.host import systemd_scope

        systemd_scope.enter(f"osmoda-{identity}.scope")
        hierarchy = cgroup.find()
    cgroup.settle(hierarchy)
    return hierarchy


def _map_ids(plan: Plan, pid: int, uid: int, gid: int) -> None:
    for operation in plan.operations:
        if isinstance(operation, isolation.Identity):
            isolation.write_file(b"/proc/%d/uid_map" % pid, b"%d %d 1" % (operation.uid, uid))
            isolation.write_file(b"/proc/%d/gid_map" % pid, b"%d %d 1" % (operation.gid, gid))


def _prepare_trees(plan: Plan, setup: Setup, release: list[int]) -> None:
    """Turn each granted path into a detached, idmapped mount: only root may, and only out here (mount_setattr(2)).

    On disk its owner stays who it is; to the sandbox the owner is its own user.
    """
    wanted: list[tuple[bytes, int]] = []
    for operation in plan.operations:
        if isinstance(operation, mounting.Grant):
            wanted.append((operation.path, operation.attributes()))
        elif isinstance(operation, mounting.DirectWorkspace):
            wanted.append((setup.workspace, operation.attributes()))
        elif isinstance(operation, mounting.OverlayWorkspace):
            wanted.append((setup.workspace, operation.attributes()))
            wanted.append((setup.layer, mounting.WRITABLE))
    namespaces: dict[tuple[int, int], int] = {}
    try:
        for path, attributes in wanted:
            fd, status = mounting.open_source(path)
            release.append(fd)
            owner = (status.st_uid, status.st_gid)
            if owner not in namespaces:
                namespaces[owner] = _id_map(owner, setup)
            try:
                tree = mounting.clone_tree(fd, attributes, namespaces[owner])
            except OSError as error:
                raise _no_tree(path, error) from None
            setup.trees[path] = tree
            release.append(tree)
    finally:
        for fd in namespaces.values():
            posix.close(fd)


def _no_tree(path: bytes, error: OSError) -> LaunchError:
    where = path.decode(errors="backslashreplace")
    if error.errno == _EINVAL:
        return LaunchError(
            f"{where} cannot be shown to a sandbox that root starts: its file system knows no idmapped mounts "
            f"({error.strerror}); an ordinary user can"
        )
    return LaunchError(f"{where}: {errors.sentence(error)}")


def _id_map(owner: tuple[int, int], setup: Setup) -> int:
    """A user namespace that maps `owner` to the sandbox's host uid: nobody lives in it, it only serves as a map."""
    parent = posix.getpid()
    pid, pidfd = syscalls.clone3(syscalls.CLONE_NEWUSER, _SIGCHLD)
    if pid == 0:
        try:
            # Else it would stay for ever, should the parent be killed now.
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
            while posix.getppid() == parent:
                _signal.pause()
        finally:
            posix._exit(0)
    try:
        isolation.write_file(b"/proc/%d/uid_map" % pid, b"%d %d 1" % (owner[0], setup.host_uid))
        isolation.write_file(b"/proc/%d/gid_map" % pid, b"%d %d 1" % (owner[1], setup.host_gid))
        return posix.open(b"/proc/%d/ns/user" % pid, posix.O_RDONLY | posix.O_CLOEXEC)
    finally:
        syscalls.pidfd_send_signal(pidfd, 9)
        posix.waitpid(pid, 0)
        posix.close(pidfd)
