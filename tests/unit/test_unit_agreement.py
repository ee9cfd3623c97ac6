"""What the comparison with systemd would notice: each of its parts, on values that differ."""

from __future__ import annotations

import dataclasses

import pytest

from osmoda.supervisor.errors import UnitError
from tests.agreement import __main__ as agreement
from tests.agreement import compare, drawn
from tests.unit_hosts import HOST, service

TEXT = """[Unit]
After=a.target
[Service]
ExecStart=/bin/a b
Environment=V_A=1
EnvironmentFile=/e
"""
UNIT = service(TEXT)


def theirs(unit):
    """What a systemd would say that agrees."""
    said = {name: ours(unit) for name, ours in compare.OURS.items()}
    said |= {name: list(getattr(unit.dependencies, key)) for name, key in compare.DEPENDENCIES.items()}
    return said | {"DynamicUser": False}


def differences(unit, said, texts=None):
    return compare.differences(unit, said, {}, lambda name: (texts or {}).get(name, ""))


def test_what_is_the_same():
    assert differences(UNIT, theirs(UNIT)) == []


@pytest.mark.parametrize("name", compare.OURS)
def test_every_value_counts(name):
    said = theirs(UNIT)
    values = {bool: not said[name], int: 7, str: "other"}
    other = [[7], [7]] if name.endswith("ExitStatus") else [["/other", ["other"], [], 0]]
    said[name] = values.get(type(said[name]), other)
    (found,) = differences(UNIT, said)
    assert found.startswith(f"{name}: ")


def test_dependencies():
    said = theirs(UNIT) | {"After": ["basic.target", "system.slice", "b.service"], "Wants": ["c.service"]}
    assert differences(UNIT, said, {"c.service": "WantedBy=agent.service"}) == [
        "After: ['a.target'] are not in systemd",
        "After: ['b.service'] are in systemd only",
    ]


def test_what_a_start_said():
    unit = service(TEXT.replace("/bin/a b", "/bin/printf %%s ${V_A} END"))
    said = b"2\0END\0PATH=/bin\0V_A=2\0V_B=x y\0"
    assert compare.differences_when_run(unit, "V_A=2\nV_B='x y'", said) == []
    found = compare.differences_when_run(unit, "V_A=3\nV_B='x y'", said)
    assert [one.partition(" ")[0] for one in found] == ["variables", "arguments"]
    found = compare.differences_when_run(unit, "V_A=2\nV_B='x y'", said.replace(b"2\0END", b"3\0END"))
    assert found == ["arguments ['2'], under systemd ['3'], of ('/bin/printf', '%s', '${V_A}', 'END')"]
    assert len(compare.differences_when_run(unit, "V_A=2", b"")) == 2


def test_lines_are_taken_out_whole():
    text = b"[Service]\nPIDFile=/a \\\n  # why\n  b\nExecStart=/bin/a\n"
    assert agreement.without(text, 2) == b"[Service]\n#\n#\n#\nExecStart=/bin/a\n"
    case = agreement.Case("a.service", "a.service", text)
    with pytest.raises(UnitError, match="PIDFile= is not supported"):
        agreement.read(case, HOST)
    rest = agreement.pruned(case, HOST)
    assert (rest.name, agreement.read(rest, HOST).exec_start[0].program) == ("pruned-a.service", "/bin/a")
    assert agreement.pruned(dataclasses.replace(case, text=b"[Service]\n"), HOST) is None


def test_drawings_are_the_same_each_time():
    assert drawn.units(3, 20) == drawn.units(3, 20) != drawn.units(4, 20)
    assert drawn.runs(3, 5, "/x") == drawn.runs(3, 5, "/x")
    assert len(set(drawn.units(3, 20).values())) > 15
