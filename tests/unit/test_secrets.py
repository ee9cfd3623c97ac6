"""Where secrets come from, what stands for them, and that it is found however it is written."""

from __future__ import annotations

import base64
import json
import os
import socket
import string
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmoda.egress import secrets
from osmoda.egress.placeholders import Detect, Swap
from osmoda.egress.secrets import SecretError, load, placeholder

VALUE = "a value of some length"
KINDS = (string.digits, string.ascii_lowercase, string.ascii_uppercase)


def keep(folder, name="KEY", content=VALUE, mode=0o600):
    path = folder / name
    path.write_text(content)
    path.chmod(mode)
    return path


# Where they are kept


def test_the_environment_comes_first_then_credentials_then_the_folder(tmp_path):
    own, credentials = tmp_path / "own", tmp_path / "credentials"
    own.mkdir()
    credentials.mkdir()
    keep(own, content="value in folder")
    environment = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert load("KEY", environment, str(own)) == "value in folder"
    keep(credentials, content="value of systemd", mode=0o440)
    assert load("KEY", environment, str(own)) == "value of systemd"
    environment["KEY"] = "value in variable"
    assert load("KEY", environment, str(own)) == "value in variable"


@pytest.mark.parametrize(("content", "value"), [(VALUE + "\n", VALUE), ("x" * 9 + "\n\n", None), (VALUE, VALUE)])
def test_one_newline_at_the_end_is_no_part_of_it(tmp_path, content, value):
    keep(tmp_path, content=content)
    if value is None:
        with pytest.raises(SecretError, match="characters that a header cannot hold"):
            load("KEY", {}, str(tmp_path))
    else:
        assert load("KEY", {}, str(tmp_path)) == value


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o602])
def test_a_file_that_others_may_open_is_refused(tmp_path, mode):
    path = keep(tmp_path, mode=mode)
    with pytest.raises(SecretError, match=f"chmod 600 {path}"):
        load("KEY", {}, str(tmp_path))


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "socket"])
def test_what_is_no_regular_file_is_refused(tmp_path, kind):
    path = tmp_path / "KEY"
    with socket.socket(socket.AF_UNIX) as bound:
        if kind == "link":
            path.symlink_to(keep(tmp_path, "OTHER"))
        elif kind == "folder":
            path.mkdir(mode=0o700)
        elif kind == "pipe":
            os.mkfifo(path, 0o600)
        else:
            here = os.open(".", os.O_RDONLY)
            os.chdir(tmp_path)
            bound.bind("KEY")
            os.fchdir(here)
            os.close(here)
        with pytest.raises(SecretError, match=r"symbolic link|regular file|cannot be read"):
            load("KEY", {}, str(tmp_path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_file_of_another_user_is_refused(tmp_path):
    os.chown(keep(tmp_path), 12345, -1)
    with pytest.raises(SecretError, match="belongs to user 12345"):
        load("KEY", {}, str(tmp_path))


def test_one_that_is_nowhere(tmp_path):
    with pytest.raises(SecretError, match=r"has no value: neither the variable KEY nor the file .*/KEY is there"):
        load("KEY", {"CREDENTIALS_DIRECTORY": str(tmp_path)}, str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_a_name_never_leads_elsewhere(tmp_path, name):
    with pytest.raises(SecretError, match="no name for a secret"):
        load(name, {}, str(tmp_path))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("short12", "shorter than 8"),
        ("x" * 4097, "longer than 4096"),
        ("line\nbreak", "header"),
        ("żółć-żółć", "header"),
    ],
)
def test_values_that_cannot_be_used(tmp_path, value, reason):
    with pytest.raises(SecretError, match=reason) as caught:
        load("KEY", {"KEY": value}, str(tmp_path))
    assert value not in str(caught.value)
    keep(tmp_path, content=value)
    with pytest.raises(SecretError, match=reason):
        load("KEY", {}, str(tmp_path))


def test_a_file_that_is_not_text(tmp_path):
    path = keep(tmp_path)
    path.write_bytes(b"\xff\xfe" * 10)
    with pytest.raises(SecretError, match="not text"):
        load("KEY", {}, str(tmp_path))


# What stands for them


@pytest.mark.parametrize(
    ("value", "prefix"),
    [
        ("sk-proj-abcdefghijklmnopqrst", "sk-proj-"),
        ("ghp_" + "a1B2" * 9, "ghp_"),
        ("AKIAIOSFODNN7EXAMPLEEXAMPLE", "AKIA"),
        ("12345678-1234-1234-1234-123456789abc", ""),
    ],
)
def test_a_placeholder_has_the_shape_of_its_value(value, prefix):
    made = placeholder(value)
    assert (len(made), made[: len(prefix)]) == (len(value), prefix)
    assert made != value
    for ours, theirs in zip(made[len(prefix) :], value[len(prefix) :], strict=True):
        kind = next(
            (kind for kind in (string.digits, string.ascii_lowercase, string.ascii_uppercase) if theirs in kind), theirs
        )
        assert ours in kind


@pytest.mark.parametrize("value", ["password", "12345678", "--------", "sk-ant-api03-a"])
def test_a_short_one_is_made_longer(value):
    made = placeholder(value)
    assert len(made) > len(value)
    assert sum(char.isalnum() for char in made) >= 16
    assert len({placeholder(value) for _ in range(50)}) == 50


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=8, max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_placeholder_gives_its_value_away(value):
    made = placeholder(value)
    assert value != made
    assert len(made) >= len(value)
    assert secrets._draw("01") in "01"


# Putting values in

STAND_IN, REAL = "sk-Ab3dEf6hIj9k+/=p", "sk-REAL&real=12+/=?"
PAIRS = [(STAND_IN, REAL)]


def some_percent(data, text):
    """`text` with some characters percent-encoded, in either case."""
    return "".join(
        data.draw(st.sampled_from([char, f"%{ord(char):02x}", f"%{ord(char):02X}"]))
        if data.draw(st.booleans())
        else char
        for char in text
    )


def pieces(data, content):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    return [content[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]


NOISE = st.text(st.sampled_from("sk-Ab3dEf%2d \n=&"), max_size=40)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_body_is_changed_alike_however_it_is_cut(data):
    content = ""
    wanted = ""
    for _ in range(data.draw(st.integers(0, 3))):
        noise = data.draw(NOISE)
        written = some_percent(data, STAND_IN)
        content += noise + written
        wanted += noise + (quote(REAL, safe="") if "%" in written else REAL)
    last = data.draw(NOISE)
    swap = Swap(PAIRS)
    found = b"".join([swap.body(piece) for piece in pieces(data, (content + last).encode())]) + swap.end()
    assert found == (wanted + last).encode()
    assert swap.end() == b""


def test_nothing_is_held_back_but_what_may_be_a_beginning():
    swap = Swap(PAIRS)
    assert swap.body(b"hello sk") == b"hello "
    assert swap.body(b"y") == b"sky"
    assert swap.body(b"%7") == b""
    assert swap.body(b"b") == b"%7b"
    assert swap.body(b"sk-Ab3dEf6hIj9k+/=") == b""
    assert swap.body(b"psk-") == REAL.encode()
    assert swap.end() == b"sk-"


def test_values_are_not_looked_into():
    swap = Swap([("first-placeholder", "second-placeholder"), ("second-placeholder", "value")])
    assert swap.text(b"first-placeholder second-placeholder") == b"second-placeholder value"


def test_one_placeholder_may_begin_another():
    swap = Swap([("placeholder", "short"), ("placeholder-long", "long")])
    assert swap.text(b"placeholder-long placeholder") == b"long short"


@pytest.mark.parametrize("kind", ["Basic", "basic", "BASIC"])
@pytest.mark.parametrize("alphabet", [base64.b64encode, base64.urlsafe_b64encode])
def test_basic_credentials(kind, alphabet):
    value = f"{kind} ".encode() + alphabet(f"??user>>:{STAND_IN}".encode())
    wanted = f"{kind} ".encode() + base64.b64encode(f"??user>>:{REAL}".encode())
    assert Swap(PAIRS).header(value) == wanted
    untouched = f"{kind} ".encode() + alphabet(b"user:password")
    assert Swap(PAIRS).header(untouched) == untouched


def test_without_secrets_nothing_changes():
    swap = Swap([])
    assert not swap
    assert (swap.text(b"x"), swap.header(b"Basic !"), swap.body(b"%"), swap.end()) == (b"x", b"Basic !", b"%", b"")


# Noticing them

NAMES = [("KEY", "ghp_0123456789abcdefghij"), ("TOKEN", STAND_IN)]
TEXT = NAMES[0][1]


def found_in(content, size):
    detect = Detect(NAMES)
    return [name for at in range(0, len(content), size) if (name := detect.feed(content[at : at + size]))][:1]


@pytest.mark.parametrize("size", [1, 3, 64, 10_000])
@pytest.mark.parametrize(
    "written",
    [
        TEXT.encode(),
        quote(TEXT, safe="").encode(),
        "".join(f"%{ord(char):02X}" for char in TEXT).encode(),
        "".join(f"%{ord(char):02x}" if at % 3 else char for at, char in enumerate(TEXT)).encode(),
        "".join(f"%25{ord(char):02x}" for char in TEXT).encode(),
        "".join(f"\\u{ord(char):04X}" for char in TEXT).encode(),
        "".join(f"\\u{ord(char):04x}" if at % 2 else char for at, char in enumerate(TEXT)).encode(),
        json.dumps(json.dumps("".join(f"\\u{ord(char):04x}" for char in TEXT))).encode(),
        *[base64.b64encode(b"x" * before + TEXT.encode() + b"yz") for before in range(3)],
        *[base64.urlsafe_b64encode(b"\xff" * before + STAND_IN.encode()).rstrip(b"=") for before in range(3)],
        base64.encodebytes(b"some text before it, so that lines break within: " + TEXT.encode()),
        quote(base64.b64encode(STAND_IN.encode()), safe="").encode(),
        TEXT.encode().hex().encode(),
        TEXT.encode().hex().upper().encode(),
    ],
)
def test_it_is_noticed(written, size):
    assert found_in(os.urandom(300) + written + os.urandom(50), size) in ([["KEY"], ["TOKEN"]])


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_it_is_noticed_however_it_is_cut_and_encoded(data):
    written = "".join(
        data.draw(st.sampled_from([char, f"%{ord(char):02x}", f"%{ord(char):02X}", f"\\u{ord(char):04x}"]))
        for char in TEXT
    )
    content = (data.draw(NOISE) + written).encode()
    detect = Detect(NAMES)
    assert "KEY" in [detect.feed(piece) for piece in pieces(data, content)]


@given(st.binary(max_size=500))
@settings(deadline=None)
def test_other_things_are_not(content):
    detect = Detect(NAMES)
    assert detect.feed(content) == ""
    assert detect.text(TEXT.encode()[:-1]) == ""


def test_with_nothing_to_look_for():
    detect = Detect([])
    assert not detect
    assert detect.feed(TEXT.encode()) == ""
