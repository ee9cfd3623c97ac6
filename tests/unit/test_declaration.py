from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.egress.destinations import ANY_PORT, Rule
from osmoda.sandbox import toml_source, validation
from osmoda.sandbox.declaration import Reader, parse_size
from osmoda.sandbox.schema import ProfileFile


def read(text: str) -> Reader:
    source = toml_source.parse("schema = 1\n" + text, "p")
    reader = Reader(source, (), "/here")
    reader.declared = reader.read(validation.validate(source, ProfileFile))
    return reader


@pytest.mark.parametrize(
    ("value", "size"),
    [(0, 0), ("0", 0), (4096, 4096), ("64K", 65536), ("512M", 512 << 20), ("4G", 4 << 30)],
)
def test_sizes_are_in_bytes_with_binary_suffixes(value, size):
    assert parse_size(value) == size


@pytest.mark.parametrize(
    "value", [-1, "", "M", "-1M", "1.5G", "1 G", "1g", "1GB", "1Gi", "٣M", "0x10", 1 << 63, "8388608T", "9" * 5000]
)
def test_what_is_no_size_is_refused(value):
    with pytest.raises(ValueError, match="size is"):
        parse_size(value)


@given(st.integers(0, 1 << 20), st.sampled_from("KMGT"))
def test_a_suffix_is_a_power_of_1024(number, suffix):
    assert parse_size(f"{number}{suffix}") == number * 1024 ** ("KMGT".index(suffix) + 1)


def test_a_rule_in_table_form():
    reader = read(
        """
[[network.allow]]
host = "API.example.com"
ports = [8443, 443, 443]
methods = ["POST", "GET"]
paths = ["/v1/*"]
secret = "KEY"
max_body = "1M"
max_bytes = "10G"
max_requests = 1000
addresses = ["10.0.0.0/8", "2001:DB8::/32", "10.0.0.0/8", "192.168.1.5"]

[[network.allow]]
host = "b.example.com"
ech = true
"""
    )
    addresses = ("10.0.0.0/8", "192.168.1.5/32", "2001:db8::/32")
    assert list(reader.declared.lists["network", "allow"]) == [
        Rule(
            "api.example.com",
            (443, 8443),
            ("GET", "POST"),
            ("/v1/*",),
            "KEY",
            1 << 20,
            max_bytes=10 << 30,
            max_requests=1000,
            addresses=addresses,
        ),
        Rule("b.example.com", ech=True),
    ]


def test_a_denial_without_ports_is_one_on_every_port():
    reader = read("network.deny = ['evil.com', 'a.com:22']")
    assert set(reader.declared.lists["network", "deny"]) == {Rule("evil.com", (ANY_PORT,)), Rule("a.com", (22,))}


def test_declared_twice_is_declared_once_where_it_first_stands():
    reader = read("[tools]\nallow = [\n  'a',\n  'a',\n]")
    assert {item: place.line for item, place in reader.declared.lists["tools", "allow"].items()} == {"a": 4}


def test_an_empty_list_is_not_an_absent_one():
    assert read("tools.allow = []").declared.lists == {("tools", "allow"): {}}
    assert read("").declared.lists == {}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("filesystem.read = ['../x']", 'p:2:20: filesystem.read[0] is "../x": the path escapes the profile\'s folder'),
        ("filesystem.tmp = '0'", 'p:2:1: filesystem.tmp is "0": it has to be above 0'),
        ("filesystem.tmp = '1X'", 'p:2:1: filesystem.tmp is "1X": a size is a number of bytes'),
        ("network.allow = ['127.1']", 'p:2:18: network.allow[0] is "127.1": it is neither a host name'),
        ("network.allow = [{ host = 'a.com', ports = [] }]", 'p:2:18: network.allow[0] is "a.com": its list of ports'),
        ("network.allow = [{ host = 'a.com', methods = [] }]", 'p:2:18: network.allow[0] is "a.com": its list of meth'),
        ("network.allow = [{ host = 'a.com', paths = ['x'] }]", 'p:2:18: network.allow[0] is "a.com": a URL path'),
        (
            "network.allow = ['127.0.0.1:80']",
            'p:2:18: network.allow[0] is "127.0.0.1:80": a sandbox has these addresses',
        ),
        ("network.allow = ['198.18.0.0/16']", 'p:2:18: network.allow[0] is "198.18.0.0/16": a sandbox has these addr'),
        (
            "network.allow = [{ host = '10.0.0.0/8', addresses = ['10.0.0.0/8'] }]",
            'p:2:18: network.allow[0] is "10.0.0.0/8": it is a network, which names its addresses itself',
        ),
        (
            "network.allow = [{ host = 'a.com', addresses = [] }]",
            'p:2:18: network.allow[0] is "a.com": its list of addresses is empty',
        ),
        (
            "network.allow = [{ host = 'a.com', addresses = ['b.com'] }]",
            'p:2:18: network.allow[0] is "a.com": "b.com" is not an address or a network',
        ),
        (
            "network.allow = [{ host = 'a.com', addresses = ['10.0.0.1/8'] }]",
            'p:2:18: network.allow[0] is "a.com": the network of that length is 10.0.0.0/8',
        ),
        (
            "network.allow = [{ host = 'a.com', ech = true, methods = ['GET'] }]",
            'p:2:18: network.allow[0] is "a.com": ech is for connections that are passed on unread',
        ),
        ("network.allow = [{ host = 'a.com', max_bytes = 0 }]", 'p:2:18: network.allow[0] is "a.com": it has to be ab'),
        ("network.connect = ['agent:a-:1']", 'p:2:20: network.connect[0] is "agent:a-:1": a-.agent is not usable as'),
        ("network.serve = ['*']", 'p:2:18: network.serve[0] is "*": "*" is not a port'),
        ("network.families = ['vsock']", 'p:2:21: network.families[0] is "vsock": allowed: unix, inet, inet6, netlink'),
        ("network.connect = ['x']", 'p:2:20: network.connect[0] is "x": it is not "agent:NAME:PORT"'),
        ("process.syscalls = ['@sytem-service']", 'p:2:21: process.syscalls[0] is "@sytem-service": there is no group'),
        ("environment.pass = ['A B']", 'p:2:21: environment.pass[0] is "A B": a variable\'s name has letters'),
        ("environment.pass = ['LC_*']", 'p:2:21: environment.pass[0] is "LC_*": a variable\'s name has letters'),
        ("environment.set = { 'A=B' = 'x' }", "p:2:21: environment.set.A=B: a variable's name has letters"),
        ('environment.set = { A = "x\\u0000" }', "p:2:21: environment.set.A holds a NUL"),
        ("tools.allow = ['a b']", 'p:2:16: tools.allow[0] is "a b": a pattern has letters'),
        ("degrade = ['seccomp']", 'p:2:12: degrade[0] is "seccomp": allowed: cpu, idmap, landlock,'),
    ],
)
def test_what_a_value_must_look_like(text, error):
    (found,) = read(text).errors
    assert str(found).startswith(error)
