"""What specifiers stand for."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.supervisor.units import specifiers, values
from tests.unit_hosts import HOST

NAME = values.unit_name(r"agent-web@a-b\x2dc.service")


def resolve(text, name=NAME, host=HOST):
    return specifiers.resolve(text, name, host)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100%%", "100%"),
        ("%n", r"agent-web@a-b\x2dc.service"),
        ("%N", r"agent-web@a-b\x2dc"),
        ("%p %P", "agent-web agent/web"),
        ("%i", r"a-b\x2dc"),
        ("%I", "a/b-c"),
        ("%j %J", "web web"),
        ("%f", "/a/b-c"),
        ("%u %U %g %G %h %s", "root 0 root 0 /root /bin/sh"),
        ("%t %S %C %L %E", "/run /var/lib /var/cache /var/log /etc"),
        ("%T %V", "/tmp /var/tmp"),
        ("%H %l", "host.example host"),
        ("%m", "0123456789abcdef0123456789abcdef"),
        ("%b", "fedcba9876543210fedcba9876543210"),
        ("%v %a %o %w", "6.12.0 x86-64 debian 13"),
        ("a%ib", r"aa-b\x2dcb"),
    ],
)
def test_specifiers(text, expected):
    assert resolve(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [("%z", "%z is no specifier"), ("50%", "at the end"), ("%d", "credentials"), ("%y", "differs between hosts")],
)
def test_what_is_no_specifier(text, says):
    with pytest.raises(specifiers.UnknownSpecifier, match=says):
        resolve(text)


def test_what_a_host_does_not_say():
    with pytest.raises(specifiers.UnknownSpecifier, match="this host says nothing"):
        resolve("%m", host=dataclasses.replace(HOST, machine_id=""))


def test_a_unit_without_an_instance():
    name = values.unit_name("agent.service")
    assert resolve("%i|%I|%f|%p", name) == "||/agent|agent"


def test_this_host():
    host = specifiers.host_here()
    assert host.hostname
    assert len(host.boot_id) == 32
    assert resolve("%t", host=host).startswith("/")


@pytest.mark.skipif(shutil.which("systemd-escape") is None, reason="systemd-escape is not installed")
def test_names_are_unescaped_as_systemd_does():
    names = ["a-b", r"\x2fetc", "a--b", r"x\x20y", "-", r"\xC3\xa4", r"\x2d-\x5c"]
    command = ["systemd-escape", "--unescape", "--", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.rstrip("\n") == " ".join(specifiers.unescape(name) for name in names)


@given(st.text(st.characters(exclude_characters="%")))
def test_text_without_specifiers_stays(text):
    assert resolve(text) == text
    assert resolve(text + "%%") == text + "%"
