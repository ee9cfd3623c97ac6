"""Each system call against the kernel, as root and as an ordinary user; what fails names the call and the object."""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from osmoda.host import syscalls

NAMESPACES = syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS
SIGCHLD = 17


def failure(call, *arguments):
    """What a person would read when `call` fails."""
    try:
        call(*arguments)
    except OSError as error:
        return error.strerror
    return None


def in_namespaces(action):
    """Run `action` as root of a user, mount and host name namespace of its own; its answer as text."""
    read, write = os.pipe()
    uid, gid = os.getuid(), os.getgid()
    pid, pidfd = syscalls.clone3(NAMESPACES, SIGCHLD)
    if pid == 0:
        try:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            syscalls.mount_private()
            answer = str(action())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    os.close(pidfd)
    with open(read) as answer:
        return answer.read()


# Processes


def clone_and_kill():
    pid, pidfd = syscalls.clone3(0, SIGCHLD)
    if pid == 0:
        signal.pause()
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    before = bool(poll.poll(0))
    syscalls.pidfd_send_signal(pidfd, signal.SIGTERM)
    poll.poll()
    reaped, status, user, system, peak = syscalls.wait4(pid, 0)
    gone = failure(syscalls.pidfd_send_signal, pidfd, signal.SIGTERM)
    inheritable = os.get_inheritable(pidfd)
    return before, reaped == pid, os.WTERMSIG(status), user >= 0 and system >= 0, peak, gone, inheritable


def test_clone3_gives_a_pidfd_that_can_be_waited_for_and_signalled(world):
    alive, reaped, number, times, peak, gone, inheritable = world.call(clone_and_kill)
    assert (alive, reaped, number, times, inheritable) == (False, True, signal.SIGTERM, True, False)
    assert 1 << 20 < peak < 1 << 30
    assert gone == "pidfd_send_signal: No such process"


def failing_clones():
    return (
        failure(syscalls.clone3, syscalls.CLONE_NEWUSER | 0x200, SIGCHLD),  # CLONE_FS with a user namespace
        failure(syscalls.wait4, -1, 0),
        failure(syscalls.wait4, os.getpid(), 0),
    )


def test_clone3_and_wait4_say_what_failed(world):
    clone, nobody, other = world.call(failing_clones)
    assert clone == "clone3: Invalid argument"
    assert nobody == "wait4 -1: No child processes"
    assert other is not None
    assert other.startswith("wait4 ")


def wait_for_python(code):
    pid = os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", code], {})
    reaped, status, user, system, _ = syscalls.wait4(pid, 0)
    return reaped == pid, os.waitstatus_to_exitcode(status), user + system


def test_wait4_counts_processor_time_and_gives_the_status(world):
    code = "import time\nwhile time.process_time() < 0.1: pass\nraise SystemExit(7)"
    reaped, code, seconds = world.call(wait_for_python, code)
    assert (reaped, code) == (True, 7)
    assert 0.1 <= seconds < 10


def names_and_flags():
    syscalls.prctl_set_name(b"a-name-of-more-than-fifteen-bytes")
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    dumpable = syscalls.prctl(3)  # PR_GET_DUMPABLE
    return Path("/proc/self/comm").read_text(), dumpable, failure(syscalls.prctl, 12345)


def test_prctl(world):
    assert world.call(names_and_flags) == ("a-name-of-more-\n", 0, "prctl 12345: Invalid argument")


def drop_everything():
    def action():
        last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
        beyond = failure(syscalls.drop_bounding_set, last + 1)
        syscalls.capset_none()
        text = Path("/proc/self/status").read_text()
        sets = [line.split()[1] for line in text.splitlines() if line.startswith("Cap")]
        return beyond, sets, failure(syscalls.drop_bounding_set, 0)

    return in_namespaces(action)


def test_capabilities_are_given_up_in_every_set(world):
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    none = [f"{0:016x}"] * 5
    assert world.call(drop_everything) == str(
        (
            f"prctl PR_CAPBSET_DROP {last + 1}: Invalid argument",
            none,
            "prctl PR_CAPBSET_DROP 0: Operation not permitted",
        )
    )


def limits():
    before = syscalls.prlimit_get(7)
    syscalls.prlimit_self(7, 50, 60)
    after = syscalls.prlimit_get(7)
    syscalls.prlimit_self(1, -1, -1)
    return before, after, syscalls.prlimit_get(1), [failure(syscalls.prlimit_get, 99), failure(limit_above)]


def limit_above():
    syscalls.prlimit_self(7, 60, 50)


def test_limits_are_set_and_read(world):
    before, after, unlimited, failures = world.call(limits)
    assert before[1] > 60
    assert after == (50, 60)
    assert unlimited == (-1, -1)
    assert failures == ["prlimit 99: Invalid argument", "prlimit 7: Invalid argument"]


def rename_host():
    return in_namespaces(lambda: (syscalls.sethostname(b"other"), os.uname().nodename))


def test_sethostname(world):
    before = os.uname().nodename
    assert world.call(rename_host) == "(None, 'other')"
    assert os.uname().nodename == before


def hostname_too_long():
    return in_namespaces(lambda: failure(syscalls.sethostname, b"h" * 65))


def test_sethostname_names_the_name(world):
    assert world.call(hostname_too_long) == f"sethostname {'h' * 65}: Invalid argument"


def keyrings():
    before = Path("/proc/keys").read_text() if os.path.exists("/proc/keys") else None
    syscalls.keyctl_join_session_keyring()
    return before, Path("/proc/keys").read_text() if before is not None else None


def test_a_new_session_keyring_replaces_the_old_one(world):
    before, after = world.call(keyrings)
    if after is not None:  # a kernel without keyrings has none to leave
        assert "_ses" in after
        assert after != before


def close_some():
    pipes = [os.pipe()[0] for _ in range(3)]
    first, last = min(pipes), max(pipes)
    syscalls.close_range(first, last)
    left = [fd for fd in range(first, last + 1) if os.path.exists(f"/proc/self/fd/{fd}")]
    syscalls.close_range(20, 10)  # nothing lies between: nothing happens
    return left


def test_close_range(world):
    assert world.call(close_some) == []


def test_overwrite_cuts_the_text_and_clears_the_rest():
    area = bytes([120]) * 12
    address = syscalls.address_of(area)
    syscalls.overwrite(address, 10, b"abc")
    assert area == b"abc" + bytes(7) + b"xx"
    syscalls.overwrite(address, 4, b"abcdefgh")
    assert area[:5] == b"abc\0\0"


@pytest.fixture
def open_folder():
    """A folder that everybody can reach and write to; pytest's own lie in one of the user's."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can touch files as somebody else")
def test_files_are_touched_as_somebody_else_until_it_is_undone(open_folder):
    secret = open_folder / "secret"
    secret.write_text("")
    secret.chmod(0o600)
    program = """
import os, sys
from osmoda.host import syscalls
syscalls.set_filesystem_ids(1234, 1235, (1236,))
open(sys.argv[1] + "/made", "w").close()
try:
    open(sys.argv[1] + "/secret")
except PermissionError:
    print("refused", os.getgroups())
syscalls.set_filesystem_ids(0, 0, ())
open(sys.argv[1] + "/secret").close()
"""
    done = subprocess.run([sys.executable, "-c", program, str(open_folder)], capture_output=True, text=True, check=True)
    assert done.stdout == "refused [1236]\n"
    made = (open_folder / "made").stat()
    assert (made.st_uid, made.st_gid) == (1234, 1235)


def become_somebody():
    return in_namespaces(lambda: failure(syscalls.set_filesystem_ids, 1234, 0, ()))


def test_an_id_that_cannot_be_is_an_error(world):
    # Without a map of its own for that id, and with setgroups(2) given up, even root of a namespace may not.
    assert world.call(become_somebody) == "setgroups: Operation not permitted"


# Files and mounts


def test_openat2_opens_by_the_rules_it_is_given(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    folder = os.open(tmp_path, os.O_PATH)
    try:
        fd = syscalls.openat2(folder, b"link", os.O_RDONLY)
        assert not os.get_inheritable(fd)
        os.close(fd)
        with pytest.raises(OSError, match="open link: Too many levels") as refused:
            syscalls.openat2(folder, b"link", os.O_RDONLY, syscalls.RESOLVE_NO_SYMLINKS)
        assert refused.value.errno == errno.ELOOP
        with pytest.raises(OSError, match=r"open \.\./x: Invalid cross-device link"):
            syscalls.openat2(folder, b"../x", os.O_RDONLY, syscalls.RESOLVE_BENEATH)
        with pytest.raises(FileNotFoundError, match=r"open no\\xff: No such file"):
            syscalls.openat2(folder, b"no\xff", os.O_RDONLY)
        made = syscalls.openat2(folder, b"made", os.O_CREAT | os.O_WRONLY, 0, 0o640)
        assert stat.S_IMODE(os.fstat(made).st_mode) & ~0o640 == 0
        os.close(made)
    finally:
        os.close(folder)


def test_renameat2_exchanges_two_files(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.write_text("2")
    syscalls.renameat2(os.fsencode(one), os.fsencode(other), syscalls.RENAME_EXCHANGE)
    assert (one.read_text(), other.read_text()) == ("2", "1")
    with pytest.raises(FileNotFoundError, match=r"renameat2 .*none: No such file"):
        syscalls.renameat2(os.fsencode(one), os.fsencode(tmp_path / "none"), syscalls.RENAME_EXCHANGE)


def test_syncfs(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    syscalls.syncfs(fd)
    os.close(fd)
    with pytest.raises(OSError, match="syncfs: Bad file descriptor"):
        syscalls.syncfs(fd)


def build_mounts(place):
    def action():
        target = os.fsencode(place)
        options = ((b"mode", b"0750"), (b"size", b"64k"))
        tree = syscalls.fsmount(b"tmpfs", options, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV)
        syscalls.move_mount(tree, syscalls.AT_FDCWD, target)
        Path(place, "file").write_text("x" * 100)
        Path(place, "copy").mkdir()
        copy = syscalls.open_tree(syscalls.AT_FDCWD, target, syscalls.OPEN_TREE_CLONE)
        syscalls.mount_setattr(copy, syscalls.MOUNT_ATTR_RDONLY)
        inner = os.open(f"{place}/copy", os.O_PATH)
        syscalls.move_mount(copy, inner, b"")
        with open(f"{place}/copy/file") as file:
            same = len(file.read())
        refused = failure(Path(place, "copy", "file").write_text, "y")
        full = failure(Path(place, "file").write_text, "x" * 100_000)
        syscalls.umount2(target + b"/copy", syscalls.MNT_DETACH)
        gone = os.listdir(f"{place}/copy")
        line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {place} " in line)
        mode = oct(os.stat(place).st_mode)
        again = failure(syscalls.umount2, target + b"/copy", 0)
        return same, refused, full, gone, mode, "nosuid,nodev" in line, again

    return in_namespaces(action)


def test_mounts_are_made_attached_made_read_only_and_taken_away(world):
    place = world.tmp / "place"
    place.mkdir()
    world.own(place)
    assert world.call(build_mounts, str(place)) == str(
        (
            100,
            "Read-only file system",
            "No space left on device",
            [],
            "0o40750",
            True,
            f"umount2 {place}/copy: Invalid argument",
        )
    )


def failing_mounts(place):
    def action():
        at = syscalls.AT_FDCWD
        name = os.fsencode(place)
        return [
            failure(syscalls.fsmount, b"nosuchfs", (), 0),
            failure(syscalls.fsmount, b"tmpfs", ((b"size", b"many"),), 0),
            failure(syscalls.fsmount, b"tmpfs", ((b"nosuch", None),), 0),
            failure(syscalls.open_tree, at, name + b"/none", syscalls.OPEN_TREE_CLONE),
            failure(syscalls.move_mount, -1, at, name),
            failure(syscalls.mount_setattr, -1, syscalls.MOUNT_ATTR_RDONLY),
            failure(syscalls.mount, b"none", name + b"/none", b"tmpfs", 0, b""),
            failure(syscalls.pivot_root, name, name),
        ]

    return in_namespaces(action)


def test_what_fails_about_mounts_names_its_object(world):
    place = world.tmp / "place"
    place.mkdir()
    world.own(place)
    assert world.call(failing_mounts, str(place)) == str(
        [
            "fsopen nosuchfs: No such device",
            "fsconfig tmpfs size=many: Invalid argument",
            "fsconfig tmpfs nosuch: Invalid argument",
            f"open_tree {place}/none: No such file or directory",
            f"move_mount {place}: Bad file descriptor",
            "mount_setattr: Bad file descriptor",
            f"mount tmpfs {place}/none: No such file or directory",
            f"pivot_root {place}: Invalid argument",
        ]
    )


def change_root(place):
    def action():
        target = os.fsencode(place)
        syscalls.mount(b"none", target, b"tmpfs", 0, b"mode=755")
        Path(place, "here").write_text("")
        os.chdir(place)
        syscalls.pivot_root(b".", b".")
        syscalls.umount2(b".", syscalls.MNT_DETACH)
        os.chdir("/")
        return os.listdir("/")

    return in_namespaces(action)


def test_pivot_root_leaves_the_old_tree(world):
    place = world.tmp / "place"
    place.mkdir()
    world.own(place)
    assert world.call(change_root, str(place)) == "['here']"


# Landlock and seccomp


def under_landlock(folder):
    abi = syscalls.landlock_abi()
    allowed, other = f"{folder}/allowed", f"{folder}/other"
    read_file = 4
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    ruleset = syscalls.landlock_create_ruleset(read_file, 3 if abi >= 4 else 0, 0, abi)
    fd = os.open(allowed, os.O_PATH)
    syscalls.landlock_add_path(ruleset, read_file, fd, allowed.encode())
    failures = [
        failure(syscalls.landlock_add_path, ruleset, 1 << 40, fd, allowed.encode()),
        failure(syscalls.landlock_create_ruleset, 1 << 40, 0, 0, abi),
        failure(syscalls.landlock_restrict_self, fd),
    ]
    if abi >= 4:
        syscalls.landlock_add_port(ruleset, 1, 0)
        failures.append(failure(syscalls.landlock_add_port, ruleset, 1 << 40, 80))
    syscalls.landlock_restrict_self(ruleset)
    with open(allowed) as file:
        text = file.read()
    return abi, text, failure(open, other), failures


def test_landlock(world):
    for name in ("allowed", "other"):
        (world.tmp / name).write_text(name)
    abi, text, refused, failures = world.call(under_landlock, str(world.tmp))
    assert abi >= 1
    assert (text, refused) == ("allowed", "Permission denied")
    assert failures[:3] == [
        f"landlock_add_rule {world.tmp}/allowed: Invalid argument",
        "landlock_create_ruleset: Invalid argument",
        "landlock_restrict_self: Bad file descriptor",
    ]
    assert failures[3:] == ["landlock_add_rule port 80: Invalid argument"][: abi >= 4]


def instruction(code, jump_true, jump_false, value):
    return code.to_bytes(2, "little") + bytes([jump_true, jump_false]) + value.to_bytes(4, "little")


def refuse_getppid(flags):
    """A filter that answers EDOM to getppid (or asks the listener)."""
    number = 110 if os.uname().machine == "x86_64" else 173
    action = 0x7FC00000 if flags else 0x00050000 | errno.EDOM
    program = (
        instruction(0x20, 0, 0, 0)
        + instruction(0x15, 0, 1, number)
        + instruction(0x06, 0, 0, action)
        + instruction(0x06, 0, 0, 0x7FFF0000)
    )
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    listener = syscalls.seccomp_set_filter(program, flags)
    if flags:
        return os.readlink(f"/proc/self/fd/{listener}")
    text = Path("/proc/self/status").read_text()
    return listener, "Seccomp_filters:\t1" in text, os.getppid()


def test_a_filter_is_installed(world):
    # glibc takes this call for one that cannot fail, and hands the kernel's answer on as it is.
    assert world.call(refuse_getppid, 0) == (0, True, -errno.EDOM)


def test_a_filter_with_a_listener_gives_its_descriptor(world):
    flags = syscalls.SECCOMP_FILTER_FLAG_NEW_LISTENER | syscalls.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
    assert world.call(refuse_getppid, flags) == "anon_inode:seccomp notify"


def broken_filter():
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    return failure(syscalls.seccomp_set_filter, bytes(8), 0), failure(syscalls.seccomp_set_filter, b"", 0)


def test_a_filter_that_the_kernel_does_not_take(world):
    assert world.call(broken_filter) == ("seccomp: Invalid argument", "seccomp: Invalid argument")


def test_which_answers_a_filter_may_give():
    assert syscalls.seccomp_action_available(0x7FFF0000)
    assert not syscalls.seccomp_action_available(0x12345678)


def test_explained_keeps_the_number_and_the_class():
    error = syscalls.explained(FileNotFoundError(errno.ENOENT, "short"), "open x")
    assert isinstance(error, FileNotFoundError)
    assert error.strerror == "open x: No such file or directory"
