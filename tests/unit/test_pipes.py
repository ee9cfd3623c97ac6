"""Pipes for splicing: reused when they are empty, large while the user's quota lasts, bounded in number."""

from __future__ import annotations

import fcntl
import os
import resource

import pytest

from osmoda.egress import pipes as module
from osmoda.egress.pipes import SIZE, Pipes

GETPIPE_SZ = 1032


@pytest.fixture
def pipes():
    pipes = Pipes()
    yield pipes
    pipes.close()


def test_an_empty_pipe_is_used_again(pipes):
    first = pipes.take()
    pipes.give_back(first)
    second = pipes.take()
    assert second is first
    pipes.give_back(second)


def test_a_pipe_with_bytes_in_it_is_never_used_again(pipes):
    """They would reach another connection."""
    pipe = pipes.take()
    os.write(pipe.write, b"somebody's")
    pipe.inside = 10
    pipes.give_back(pipe)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pipe.read)
    other = pipes.take()
    with pytest.raises(BlockingIOError):
        os.read(other.read, 10)
    pipes.give_back(other)


def test_pipes_are_large_non_blocking_and_closed_on_exec(pipes):
    pipe = pipes.take()
    assert fcntl.fcntl(pipe.write, GETPIPE_SZ) == SIZE
    assert not os.get_inheritable(pipe.read)
    assert not os.get_inheritable(pipe.write)
    assert not os.get_blocking(pipe.read)
    pipes.give_back(pipe)


def test_there_is_a_most_and_only_some_are_large(pipes):
    taken = []
    while (pipe := pipes.take()) is not None:
        taken.append(pipe)
    assert len(taken) == module._MOST
    assert sum(pipe.large for pipe in taken) <= module._LARGE
    for pipe in taken:
        pipes.give_back(pipe)
    pipe = pipes.take()
    assert pipe is not None
    pipes.give_back(pipe)


def test_only_few_are_kept(pipes):
    before = len(os.listdir("/proc/self/fd"))
    taken = [pipes.take() for _ in range(module._KEPT + 10)]
    for pipe in taken:
        pipes.give_back(pipe)
    assert len(os.listdir("/proc/self/fd")) == before + 2 * module._KEPT


def test_without_descriptors_there_is_none(pipes):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        assert pipes.take() is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    pipe = pipes.take()
    assert pipe is not None
    pipes.give_back(pipe)


def test_a_user_whose_quota_is_used_up_gets_pipes_of_the_usual_size(pipes, monkeypatch):
    def refuse(fd, command, size):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(module.fcntl, "fcntl", refuse)
    pipe = pipes.take()
    monkeypatch.undo()
    assert not pipe.large
    assert os.write(pipe.write, b"x") == 1
    pipe.inside = 1
    pipes.give_back(pipe)
