"""Which running sandboxes keep a profile from being replaced. With real ones: tests/attacks/test_path_attacks.py."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from osmoda.sandbox import covers, lease, pins, processes
from osmoda.sandbox.errors import SandboxError
from tests.unit.test_processes import ONE

OTHER = 54321


class Pinned:
    """Mounts of a process that covers whatever it is asked for: those of a namespace of one's own can be made so."""

    def __init__(self, pid):
        pass

    def without(self, wanted):
        return b""

    def close(self):
        pass


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """How an edit is refused (not at all: empty) while a sandbox of `uid` has a mount over the file."""
    monkeypatch.setattr(covers, "Mounts", Pinned)
    tmp_path.chmod(0o755)
    file = tmp_path / "agent.toml"
    file.write_text("")
    file.chmod(0o644)

    def ask(uid):
        monkeypatch.setattr(processes, "running", lambda: (replace(ONE, uid=uid),))
        try:
            pins.check_replaceable(str(file))
        except SandboxError as error:
            return str(error)
        return ""

    return ask


@pytest.mark.parametrize("uid", [os.geteuid(), 0, lease.FIRST_UID, lease.FIRST_UID + lease.COUNT - 1])
def test_a_sandbox_of_this_users_or_of_roots(refused, uid):
    assert "lies where sandbox 1a-1 may write" in refused(uid)


def test_another_user_cannot_keep_anybody_from_an_edit(refused):
    """Whoever imitates a sandbox puts mounts of their own wherever they like."""
    assert refused(OTHER) == ""


@pytest.mark.parametrize("name", ["", "agent.toml"])
def test_another_user_who_may_write_there(refused, tmp_path, name):
    (tmp_path / name).chmod(0o777)
    assert "lies where sandbox 1a-1 may write" in refused(OTHER)
