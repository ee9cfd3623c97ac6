"""Host uids for sandboxes: each held by one open file description, by whoever has a descriptor of it."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys

import pytest

from osmoda.host import paths
from osmoda.sandbox import lease
from tests.worlds import Program

HOLD = "import sys; print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def few(monkeypatch):
    """Two uids are all there is."""
    monkeypatch.setattr(lease, "COUNT", 2)


@pytest.fixture
def holding():
    """Descriptors that the test still holds at its end."""
    held: list[int] = []
    yield held
    for fd in held:
        os.close(fd)


def test_two_leases_differ(holding):
    uids = set()
    for _ in range(5):
        uid, fd = lease.acquire()
        holding.append(fd)
        uids.add(uid)
        assert not os.get_inheritable(fd)
    assert len(uids) == 5
    assert uids <= set(range(lease.FIRST_UID, lease.FIRST_UID + lease.COUNT))


def test_a_lease_that_is_given_back_can_be_had_again(few, holding):
    first, fd = lease.acquire()
    os.close(fd)
    again = {first}
    for _ in range(2):
        uid, fd = lease.acquire()
        holding.append(fd)
        again.add(uid)
    assert again == {lease.FIRST_UID, lease.FIRST_UID + 1}


def test_when_all_are_taken_it_says_so_and_leaves_no_descriptor(few, holding):
    holding.extend(lease.acquire()[1] for _ in range(2))
    with pytest.raises(OSError, match="all 2 uids reserved for sandboxes are in use") as refused:
        lease.acquire()
    assert refused.value.errno == errno.EAGAIN


def test_a_child_holds_the_lease_after_its_parent_let_go(few, holding):
    uid, fd = lease.acquire()
    other, second = lease.acquire()
    holding.append(second)
    with Program(
        [sys.executable, "-c", HOLD], pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        os.close(fd)
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(OSError, match="are in use"):
            lease.acquire()
        child.communicate("")
    again, fd = lease.acquire()
    holding.append(fd)
    assert again == uid != other


def test_another_process_gets_another_uid(few, holding):
    uid, fd = lease.acquire()
    holding.append(fd)
    code = "from osmoda.sandbox import lease; lease.COUNT = 2; print(lease.acquire()[0])"
    taken = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {uid, int(taken)} == {lease.FIRST_UID, lease.FIRST_UID + 1}


def test_the_file_is_its_users_alone(holding):
    old = os.umask(0)
    try:
        holding.append(lease.acquire()[1])
    finally:
        os.umask(old)
    status = os.lstat(paths.own_directory("runtime") + "/uids")
    assert stat.S_ISREG(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600


def test_a_link_in_its_place_is_not_followed(tmp_path):
    os.symlink(tmp_path / "elsewhere", paths.own_directory("runtime") + "/uids")
    with pytest.raises(OSError, match="Too many levels"):
        lease.acquire()
    assert not (tmp_path / "elsewhere").exists()
