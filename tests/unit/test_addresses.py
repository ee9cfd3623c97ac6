from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.egress.addresses import classify, embedded, inside, may_dial


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


CLASSES = {
    "public": [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "168.63.129.15",
        "168.63.129.17",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "192.0.2.1",  # documentation counts as public
        "192.31.196.1",
        "192.52.193.1",
        "192.167.255.255",
        "192.169.0.0",
        "192.175.48.1",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.100.1",
        "203.0.113.1",
        "223.255.255.255",
        "2000::",
        "2001:200::",
        "2001:3::1",
        "2001:4:112::1",
        "2001:4860:4860::8888",
        "2001:db8::1",
        "2003::1",
        "2606:4700::1111",
        "2620:4f:8000::1",
        "2a00:1450::1",
        "3ffe:ffff::",
        "3fff:1000::",
    ],
    "private": [
        "10.0.0.0",
        "10.255.255.255",
        "172.16.0.0",
        "172.31.255.255",
        "192.168.0.1",
        "192.168.255.255",
        "fc00::",
        "fd00:ec2::255",
        "fdff::1",
        "fec0::1",
    ],
    "shared": ["100.64.0.1", "100.127.255.255"],
    "loopback": ["127.0.0.1", "127.255.255.255", "::1"],
    "link-local": ["169.254.0.1", "169.254.169.253", "169.254.255.255", "fe80::1", "febf::1"],
    "metadata": [
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "169.254.0.23",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "fd00:42::42",
        "fd00:c1::a9fe:a9fe",
        "fe80::a9fe:a9fe",
    ],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1", "ffff::"],
    "unspecified": ["0.0.0.0", "0.0.0.1", "0.255.255.255", "::"],
    "translated": [
        "64:ff9b::a00:1",
        "64:ff9b::101:101",
        "64:ff9b:1::a00:1",
        "64:ff9b:1:ffff::1",
        "2002:a00:1::",
        "2001::1",
        "2001:0:ffff::",
        "::ffff:0:a00:1",
    ],
    "mapped": ["::ffff:169.254.169.254", "::ffff:1.1.1.1", "::127.0.0.1", "::2"],
    "reserved": [
        "192.0.0.1",
        "192.0.0.9",
        "192.0.0.170",
        "192.88.99.1",
        "240.0.0.1",
        "255.255.255.255",
        "100::1",
        "100:0:0:1::1",
        "64:ff9b:2::1",
        "2001:1::1",
        "2001:10::1",
        "2001:20::1",
        "2001:1ff:ffff::1",
        "3fff::1",
        "3fff:fff::1",
        "4000::1",
        "5f00::1",
        "1fff::1",
        "e000::1",
        "fbff::1",
        "fe00::1",
    ],
    "ours": ["198.18.0.0", "198.18.0.1", "198.19.255.255", "2001:2::1", "2001:2:0:ffff::1"],
}
NOT_LIFTED = ("translated", "mapped", "ours", "unspecified")
EVERYTHING = ("0.0.0.0/0", "::/0")


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in CLASSES.items() for text in texts])
def test_the_class_of_an_address(kind, text):
    assert classify(packed(text)) == kind
    reason = may_dial(packed(text), ())
    assert (reason == "") == (kind == "public")
    if reason:
        assert str(ipaddress.ip_address(text)) in reason or kind in ("mapped", "translated")


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in CLASSES.items() for text in texts])
def test_a_named_network_lifts_the_refusal_where_one_can(kind, text):
    assert (may_dial(packed(text), EVERYTHING) == "") == (kind not in NOT_LIFTED)
    assert (may_dial(packed(text), (str(ipaddress.ip_network(text)),)) == "") == (kind not in NOT_LIFTED)


@pytest.mark.parametrize(
    ("text", "networks", "may"),
    [
        ("10.1.2.3", ("10.0.0.0/8",), True),
        ("10.1.2.3", ("10.1.2.3/32",), True),
        ("10.1.2.3", ("10.1.2.3",), True),
        ("10.1.2.3", ("10.1.2.4/32", "10.0.0.0/15"), True),
        ("10.1.2.3", ("10.2.0.0/16", "192.168.0.0/16"), False),
        ("10.1.2.3", ("a00::/8",), False),
        ("10.1.2.3", ("::/0",), False),
        ("100.64.0.1", ("100.64.0.0/10",), True),
        ("fd00::1", ("fd00::/8",), True),
        ("fd00::1", ("253.0.0.0/8", "0.0.0.0/0"), False),
        # An IPv4 network means IPv4: not the same addresses in another's coat.
        ("::ffff:10.1.2.3", ("10.0.0.0/8", "::ffff:0:0/96"), False),
        ("64:ff9b::a01:203", ("10.0.0.0/8", "64:ff9b::/96"), False),
        ("2002:a01:203::1", ("10.0.0.0/8", "2002::/16"), False),
        ("198.18.0.1", ("198.18.0.0/15",), False),
        ("2001:2::1", ("2001:2::/48",), False),
    ],
)
def test_networks_lift_the_refusal_of_what_is_really_in_them(text, networks, may):
    assert (may_dial(packed(text), networks) == "") is may


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("::ffff:169.254.169.254", "169.254.169.254"),
        ("::10.0.0.1", "10.0.0.1"),
        ("::ffff:0:10.0.0.1", "10.0.0.1"),
        ("64:ff9b::10.0.0.1", "10.0.0.1"),
        ("64:ff9b:1::10.0.0.1", "10.0.0.1"),
        ("2002:a9fe:a9fe::1", "169.254.169.254"),
        ("2001:0:102:304:0:0:5601:5601", "169.254.169.254"),
    ],
)
def test_the_reason_names_what_is_inside(text, inner):
    assert embedded(packed(text)) == packed(inner)
    reason = may_dial(packed(text), EVERYTHING)
    assert inner in reason
    assert ("metadata" in reason) == (classify(packed(inner)) == "metadata")


def test_other_addresses_hold_none():
    for kind, texts in CLASSES.items():
        if kind not in ("translated", "mapped"):
            assert [embedded(packed(text)) for text in texts] == [None] * len(texts)


@pytest.mark.parametrize("network", ["", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/x", "10.0/8", "fe80::1%lo/64", "a/8"])
def test_what_is_no_network(network):
    with pytest.raises(ValueError, match="not a network"):
        inside(packed("10.0.0.1"), (network,))


@pytest.mark.parametrize("address", [b"", b"\x7f", bytes(5), bytes(15), bytes(17)])
def test_what_is_no_address(address):
    with pytest.raises(ValueError, match="4 or 16 bytes"):
        classify(address)
    with pytest.raises(ValueError, match="4 or 16 bytes"):
        may_dial(address, ())


# Against Python's own tables, which follow the same registries

_networks = [
    ipaddress.ip_network(text)
    for text in """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.88.99.0/24
    192.168.0.0/16 198.18.0.0/15 224.0.0.0/4 240.0.0.0/4 ::/96 ::ffff:0:0/96 64:ff9b::/96 64:ff9b:1::/48 100::/64
    2001::/23 2001::/32 2001:2::/48 2001:3::/32 2001:db8::/32 2002::/16 3fff::/20 fc00::/7 fe80::/10 fec0::/10 ff00::/8
    """.split()  # noqa: SIM905
]
# At and around the edges, where a mask that is one bit off would show.
_edges = st.sampled_from(_networks).flatmap(
    lambda network: st.sampled_from(
        [
            type(network.network_address)((int(end) + step) % (1 << network.max_prefixlen))
            for end in (network.network_address, network.broadcast_address)
            for step in (-1, 0, 1)
        ]
    )
)
_addresses = st.one_of(
    st.ip_addresses(), _edges, st.sampled_from(_networks).flatmap(lambda network: st.ip_addresses(network=network))
)
# Documentation; and AMT and AS112, which older Pythons do not know to be globally reachable.
PUBLIC_ALL_THE_SAME = [
    ipaddress.ip_network(text)
    for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "2001:3::/32", "2001:4:112::/48")
]


@given(_addresses)
def test_nothing_is_public_that_python_knows_to_be_special(address):
    if classify(address.packed) != "public":
        return
    if any(address.version == network.version and address in network for network in PUBLIC_ALL_THE_SAME):
        return
    assert address.is_global
    special = [address.is_loopback, address.is_link_local, address.is_multicast, address.is_reserved]
    assert not any([*special, address.is_private, address.is_unspecified])
    if address.version == 6:
        assert (address.ipv4_mapped, address.sixtofour, address.teredo) == (None, None, None)
        assert not address.is_site_local


@given(_addresses)
def test_classes_agree_with_python(address):
    kind = classify(address.packed)
    assert kind != "loopback" or address.is_loopback
    assert kind != "link-local" or address.is_link_local
    assert kind != "multicast" or address.is_multicast
    assert kind != "private" or address.is_private or address.is_site_local
    if address.version == 6 and address.ipv4_mapped is not None:
        # Newer Pythons judge these by what is inside.
        assert kind == "mapped"
        assert embedded(address.packed) == address.ipv4_mapped.packed
        return
    assert address.is_loopback == (kind == "loopback")
    assert address.is_multicast == (kind == "multicast")
    if address.version == 6 and address.sixtofour is not None:
        assert embedded(address.packed) == address.sixtofour.packed
    if address.version == 6 and address.teredo is not None:
        assert embedded(address.packed) == address.teredo[1].packed


@given(_addresses, st.sampled_from(_networks) | st.ip_addresses().map(ipaddress.ip_network))
def test_inside_agrees_with_python(address, network):
    assert inside(address.packed, (str(network),)) == (address.version == network.version and address in network)
