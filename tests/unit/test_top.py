"""The page of `top`: it fits, and nothing that a program chose acts on the terminal."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from rich.console import Console

from osmoda.sandbox import top
from osmoda.sandbox.denials import Denial
from osmoda.sandbox.live import Sample, Shown
from osmoda.sandbox.live_denials import Refusals
from osmoda.sandbox.processes import Running


def shown(number=1, *, profile="tier2", command="sleep 9", agent="", cpu=1.25, memory=3 << 20):
    running = Running(f"{number:x}-1", 2, profile, 10 + number, 1000, command, 11, 2, memory, 0.5, 5.0, 3725.4)
    return Shown(running, cpu, agent, 4 if agent else None, (0, 0))


def denial(number=1, **more):
    values = {"operation": "mount", "object": "", "advice": "above tier 2's ceiling: it would change mounts"} | more
    return Denial(
        time=float(number), sandbox="1-1", pid=7, command="sh", layer="seccomp", habitual=False, count=1, **values
    )


def lines(sandboxes, denials=(), size=(80, 24), by="age", note=""):
    refusals = Refusals()
    for number, one in enumerate(denials):
        refusals._keep(one.sandbox, (number,), one)
    live = SimpleNamespace(sample=Sample(0.0, tuple(sandboxes), note), refusals=refusals, missed=0)
    console = Console(width=size[0], height=size[1], force_terminal=True, markup=False, color_system=None)
    with console.capture() as capture:
        console.print(top.page(live, size, by=by, habitual=False, interval=1.0))
    return capture.get().splitlines()


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (20, 6), (200, 60)])
def test_the_page_has_as_many_lines_as_the_screen_and_none_too_long(size):
    for count, refused in itertools.product((0, 9, 10, 11, 40), (0, 60)):
        found = lines([shown(number) for number in range(count)], [denial(number) for number in range(refused)], size)
        assert len(found) == size[1], (count, refused)
        assert max(len(line) for line in found) <= size[0], (count, refused)
        assert "q quit" in found[-1]


def test_more_sandboxes_than_fit_are_counted():
    found = lines([shown(number) for number in range(50)])
    (more,) = [line for line in found if "more" in line]
    listed = sum(line.startswith(tuple(f"{number:x}-1 " for number in range(50))) for line in found)
    assert more.split()[:3] == ["…", str(50 - listed), "more"]


def test_the_columns_of_a_sandbox():
    text = "\n".join(lines([shown(26, profile="/home/x/agent.toml", agent="writer")]))
    assert "1a-1" in text
    for cell in ("writer", "agent.toml", "36", "1:02:05", "1.2", "3.0M", " 4"):
        assert cell in text


def test_a_wide_screen_has_the_command():
    assert "sleep 9" in "\n".join(lines([shown()], size=(120, 24)))
    assert "sleep 9" not in "\n".join(lines([shown()]))


def test_orders():
    found = [shown(1, cpu=1, memory=1), shown(2, cpu=9, memory=2, agent="a"), shown(3, cpu=5, memory=3)]
    expected = {"age": "123", "cpu": "231", "memory": "321", "name": "213"}
    for by in top.ORDERS:
        assert [one.running.identity[0] for one in top.ordered(found, by)] == [*expected[by]]


def test_the_newest_refusal_is_the_last_and_is_there_in_full():
    line = 'syscalls = [..., "mount"]'
    found = lines([shown()], [denial(1), denial(2, operation="swapon", origin="/p/agent.toml:7", line=line)])
    at = next(index for index, text in enumerate(found) if "swapon()" in text)
    assert found[at].rstrip().endswith("swapon()")
    assert found[at + 1].strip() == f"/p/agent.toml:7: {line}"
    assert sum("mount()" in text for text in found[:at]) == 1


def test_names_that_programs_chose_do_nothing():
    evil = "\x1b]0;owned\x07\x1b[2J\r\n\u202e"
    found = lines(
        [shown(agent=evil, profile=evil, command=evil)],
        [denial(1, object=evil, advice=evil), denial(2, object=evil, origin=evil, line=evil)],
        size=(200, 24),
        note=evil,
    )
    assert len(found) == 24
    text = "".join(found)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "\\x1b]0;owned" in text


def test_sizes_are_short():
    sizes = {0: "0B", 999: "999B", 1 << 20: "1.0M", 150 << 20: "150M", 1000 << 20: "1.0G", 3 << 40: "3072G"}
    assert {value: top.size(value) for value in sizes} == sizes
