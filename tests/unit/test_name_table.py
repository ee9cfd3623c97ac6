from __future__ import annotations

import ipaddress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from osmoda.egress import name_table
from osmoda.egress.name_table import CAPACITY, INDEXES, NameTable, TableFull


def test_text_and_packed_forms_agree():
    for text, packed in (
        (name_table.RESOLVER_IPV4_TEXT, name_table.RESOLVER_IPV4),
        (name_table.RESOLVER_IPV6_TEXT, name_table.RESOLVER_IPV6),
    ):
        assert ipaddress.ip_address(text).packed == packed
    for text, (packed, bits) in (
        (name_table.NETWORK_IPV4, name_table.NETWORK_IPV4_PACKED),
        (name_table.NETWORK_IPV6, name_table.NETWORK_IPV6_PACKED),
    ):
        network = ipaddress.ip_network(text)
        assert (network.network_address.packed, network.prefixlen) == (packed, bits)


@pytest.mark.parametrize("index", [0, 1, 255, 65535, INDEXES - 1])
def test_every_index_has_an_address_of_each_range(index):
    ipv4, ipv6 = (ipaddress.ip_address(packed) for packed in (NameTable.ipv4(index), NameTable.ipv6(index)))
    assert ipv4 == ipaddress.ip_address("198.18.1.0") + index
    assert ipv6 == ipaddress.ip_address("2001:2:0:1::") + index
    assert ipv4 in ipaddress.ip_network(name_table.NETWORK_IPV4)
    assert ipv6 in ipaddress.ip_network(name_table.NETWORK_IPV6)


def test_the_last_address_is_the_last_of_the_range():
    assert NameTable.ipv4(INDEXES - 1) == bytes([198, 19, 255, 255])


def test_a_name_keeps_its_address_and_both_lead_back():
    table = NameTable()
    first, second = table.bind("a.example"), table.bind("b.example")
    assert first != second
    assert table.bind("a.example") == first
    for index, name in ((first, "a.example"), (second, "b.example")):
        assert table.name_of(table.ipv4(index)) == name
        assert table.name_of(table.ipv6(index)) == name


@pytest.mark.parametrize(
    "address",
    [
        b"",
        b"\xc6",
        name_table.RESOLVER_IPV4,
        name_table.RESOLVER_IPV6,
        ipaddress.ip_address("198.18.0.255").packed,
        ipaddress.ip_address("198.18.1.1").packed,
        ipaddress.ip_address("0.0.0.0").packed,
        ipaddress.ip_address("255.255.255.255").packed,
        ipaddress.ip_address("::ffff:198.18.1.0").packed,
        ipaddress.ip_address("2001:2::").packed,
        ipaddress.ip_address("2001:2:0:2::").packed,
        ipaddress.ip_address("2001:2:0:1:ffff:ffff:ffff:ffff").packed,
        ipaddress.ip_address("198.18.1.0").packed + b"\0",
    ],
)
def test_any_other_address_stands_for_nothing(address):
    table = NameTable()
    table.bind("a.example")
    assert table.name_of(address) is None


def test_the_name_unused_for_longest_goes_first():
    table = NameTable(3)
    for name in ("a", "b", "c"):
        table.bind(name)
    table.bind("a")
    table.hold("b")
    table.release("b")
    table.bind("d")  # c was used least recently
    assert table.name_of(table.ipv4(2)) is None
    assert [table.name_of(table.ipv4(index)) for index in (0, 1, 3)] == ["a", "b", "d"]
    assert len(table) == 3


def test_a_held_name_stays_and_a_table_of_held_names_takes_no_more():
    table = NameTable(2)
    table.bind("a")
    table.bind("b")
    table.hold("a")
    table.hold("a")
    table.hold("b")
    table.release("a")
    with pytest.raises(TableFull, match="2 names are in use by open connections"):
        table.bind("c")
    assert table.bind("a") == 0
    table.release("a")
    assert table.bind("c") == 2
    assert table.name_of(table.ipv4(0)) is None
    assert table.name_of(table.ipv4(1)) == "b"


def test_what_is_not_there_cannot_be_held_nor_let_go():
    table = NameTable()
    table.bind("a")
    for change in (lambda: table.hold("b"), lambda: table.release("a")):
        with pytest.raises(KeyError):
            change()


@pytest.mark.parametrize("capacity", [0, -1, INDEXES])
def test_addresses_must_be_able_to_rest(capacity):
    with pytest.raises(ValueError, match="a table of names holds"):
        NameTable(capacity)


def test_an_address_given_up_rests_as_long_as_it_can():
    """A program that keeps an address beyond its name's time reaches nothing, rather than another name."""
    table = NameTable()
    for number in range(CAPACITY):
        table.bind(f"{number}.example")
    stale = table.ipv4(0)
    assert table.name_of(stale) == "0.example"
    rest = 0
    while True:
        table.bind(f"new-{rest}.example")
        if table.name_of(stale) is not None:
            break
        rest += 1
    assert rest == INDEXES - CAPACITY == 65280
    assert len(table) == CAPACITY


class Table(RuleBasedStateMachine):
    """Against a model that is slow and obvious."""

    names = st.sampled_from([f"{letter}.example" for letter in "abcdefg"])

    def __init__(self):
        super().__init__()
        self.table = NameTable(4)
        self.used: list[str] = []  # least recently first
        self.index: dict[str, int] = {}
        self.holders: dict[str, int] = {}
        self.given: set[int] = set()

    @rule(name=names)
    def bind(self, name):
        idle = [other for other in self.used if not self.holders.get(other)]
        if name not in self.index and len(self.index) == 4:
            if not idle:
                with pytest.raises(TableFull):
                    self.table.bind(name)
                return
            del self.index[idle[0]]
            self.used.remove(idle[0])
        index = self.table.bind(name)
        if name in self.index:
            assert index == self.index[name]
        else:
            assert index not in self.given  # long before any comes back
        self.given.add(index)
        self.index[name] = index
        self._use(name)

    @precondition(lambda self: self.index)
    @rule(pick=st.integers(0, 100))
    def hold(self, pick):
        name = sorted(self.index)[pick % len(self.index)]
        self.table.hold(name)
        self.holders[name] = self.holders.get(name, 0) + 1

    @precondition(lambda self: any(self.holders.values()))
    @rule(pick=st.integers(0, 100))
    def release(self, pick):
        held = sorted(name for name, count in self.holders.items() if count)
        name = held[pick % len(held)]
        self.table.release(name)
        self.holders[name] -= 1
        if not self.holders[name]:
            self._use(name)

    def _use(self, name):
        if name in self.used:
            self.used.remove(name)
        self.used.append(name)

    @invariant()
    def both_ways(self):
        assert len(self.table) == len(self.index)
        for index in self.given:
            expected = next((name for name, own in self.index.items() if own == index), None)
            assert self.table.name_of(self.table.ipv4(index)) == expected
            assert self.table.name_of(self.table.ipv6(index)) == expected


TestTable = Table.TestCase
TestTable.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
