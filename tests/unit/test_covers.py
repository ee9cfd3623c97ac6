"""Mounts that must outlast what the host does."""

from __future__ import annotations

import os
import subprocess

import pytest

from osmoda.sandbox import covers
from osmoda.sandbox.operations import mounting
from tests.worlds import Program


def test_the_covers_of_a_plan_are_its_masks_and_pins_in_what_it_writes():
    operations = (
        mounting.Mask("a:1", b"/srv/data/.env", True),
        mounting.Mask("a:2", b"/work/secret", False),
        mounting.Mask("a:3", b"/elsewhere/secret", False),
        mounting.Pinned("tier 1", (b"/work/deep/agent.toml", b"/srv/data/p.toml", b"/opt/p.toml"), (b"/srv/data",)),
    )
    assert covers.points(operations, b"/work") == (
        *(b"/srv/data/.env", b"/work/secret"),
        *(b"/work/deep", b"/work/deep/agent.toml", b"/srv/data/p.toml"),
    )
    assert covers.points(operations, b"") == (b"/srv/data/.env", b"/srv/data/p.toml")


@pytest.mark.parametrize("name", ["plain", "with space", "back\\slash", "tab\tand\nline", "ä#"])
def test_a_lost_mount_is_found_under_any_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    script = 'mount -t tmpfs none "$0" && echo up && read line && umount "$0" && echo down && read line'
    pipe = subprocess.PIPE
    command = ["unshare", "--map-root-user", "--mount", "--propagation", "private", "sh", "-c", script, str(folder)]
    with Program(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "up\n"
        mounts = covers.Mounts(other.pid)
        try:
            wanted = (b"/proc", os.fsencode(folder))
            assert mounts.without(wanted) == b""
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == "down\n"
            assert mounts.without(wanted) == os.fsencode(folder)
        finally:
            mounts.close()
        other.communicate("\n")


def test_a_process_that_is_gone_is_told_from_one_that_cannot_be_looked_at():
    gone = Program(["true"])
    gone.wait()
    with pytest.raises(ProcessLookupError):
        covers.Mounts(gone.pid)
