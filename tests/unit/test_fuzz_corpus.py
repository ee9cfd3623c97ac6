"""What the fuzzers kept is run through their targets at every test run, also where there is no fuzzer."""

from __future__ import annotations

import contextlib

import pytest

from osmoda.egress.hello import MalformedHello, parse_hello
from tests.client_hellos import hello
from tests.fuzz import corpora


@pytest.mark.parametrize("name", corpora.names())
def test_the_kept_inputs_of(name):
    one = corpora.target(name)
    kept = corpora.kept(name)
    assert len(kept) >= 10
    for path in kept:
        try:
            one(path.read_bytes())
        except Exception as error:
            pytest.fail(f"{path}: {error!r}")


def test_every_corpus_has_a_target():
    assert sorted(path.name for path in corpora.CORPUS.iterdir()) == corpora.names()


def test_inputs_that_reach_nothing_new_are_left_out():
    def one(data: bytes) -> None:
        with contextlib.suppress(MalformedHello):
            parse_hello(data)

    inputs = [b"\x17", b"\x17\3", b"\x16", b"\x15", hello(), hello(b"other.example")]
    assert corpora.smallest(one, inputs) == [b"\x15", b"\x16", hello()]
