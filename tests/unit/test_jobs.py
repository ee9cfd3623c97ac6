"""Which units a request is about, in what order they start and stop, and cycles."""

from __future__ import annotations

import pytest

from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.units import jobs
from osmoda.supervisor.units.unit import Origin
from tests.plain_units import depends, plain


class Files:
    """Units by name; a name that leads to another is an alias, an error is one that cannot be read."""

    def __init__(self, **found):
        self.found = {f"{name}.service": one for name, one in found.items()}

    def load(self, name):
        one = self.found.get(name)
        if one is None:
            raise UnitError(f"there is no unit {name}")
        if isinstance(one, UnitError):
            raise one
        if isinstance(one, str):
            return self.load(one)
        return plain(name=name, dependencies=depends(**one.get("depends", {})), origins=one.get("origins", {}))


def unit(**names):
    return {"depends": {kind: tuple(f"{name}.service" for name in found) for kind, found in names.items()}}


def names(found):
    return [name.removesuffix(".service") for name in found]


def closure(files, *wanted):
    return jobs.closure(files, [f"{name}.service" for name in wanted])


def test_a_unit_brings_what_it_requires_and_wants():
    files = Files(a=unit(requires=["b"], wants=["c", "gone"]), b=unit(binds_to=["d"]), c=unit(), d=unit(), e=unit())
    units, problems = closure(files, "a")
    assert sorted(names(units)) == ["a", "b", "c", "d"]
    assert problems == {}


def test_what_requires_what_is_not_there_is_not_started():
    files = Files(a=unit(requires=["b"]), b=unit(requires=["gone"]), c=unit(wants=["b"]))
    units, problems = closure(files, "a", "c")
    assert names(units) == ["c"]
    assert problems == {"a.service": "it requires b.service: it requires gone.service: there is no unit gone.service"}


def test_the_line_that_requires_it_is_named():
    origin = Origin("/units/a.service", 3)
    files = Files(a=unit(requires=["gone"]) | {"origins": {"Unit.Requires=gone.service": origin}})
    _, problems = closure(files, "a")
    assert problems["a.service"].startswith("/units/a.service:3: it requires gone.service: ")


def test_a_unit_that_is_only_wanted_may_be_broken():
    files = Files(a=unit(wants=["b"]), b=UnitError("broken"))
    units, problems = closure(files, "a")
    assert (names(units), problems) == (["a"], {})


def test_an_alias_is_one_unit():
    files = Files(a=unit(), other="a.service")
    units, _ = closure(files, "other", "a")
    assert names(units) == ["a"]


def test_units_of_other_kinds_are_the_host_s():
    files = Files(a={"depends": {"requires": ("network-online.target",), "after": ("network-online.target",)}})
    units, problems = closure(files, "a")
    assert (names(units), problems) == (["a"], {})
    assert jobs.before_start(units) == {"a.service": frozenset()}


def test_the_order_of_starts_and_stops():
    files = Files(a=unit(after=["b"], wants=["b", "c"]), b=unit(), c=unit(before=["b"]))
    units, _ = closure(files, "a")
    starts = jobs.before_start(units)
    assert {name: sorted(names(found)) for name, found in starts.items()} == {
        "a.service": ["b"],
        "b.service": ["c"],
        "c.service": [],
    }
    stops = jobs.before_stop(units)
    assert {name: sorted(names(found)) for name, found in stops.items()} == {
        "a.service": [],
        "b.service": ["a"],
        "c.service": ["b"],
    }


def test_a_cycle_is_refused_with_its_lines():
    first = {"origins": {"Unit.After=b.service": Origin("/units/a.service", 2)}}
    second = {"origins": {"Unit.Before=b.service": Origin("/units/c.service", 4)}}
    files = Files(
        a=unit(after=["b"], wants=["b", "c"]) | first,
        b=unit(after=["c"]),
        c=unit(after=["a"], before=["b"]) | second,
    )
    units, _ = closure(files, "a")
    with pytest.raises(UnitError, match="goes in a circle") as caught:
        jobs.before_start(units)
    text = str(caught.value)
    for step in (
        "a.service after b.service (/units/a.service:2)",
        "c.service after a.service",
        "b.service after c.service",
    ):
        assert step in text
    # To stop them must be possible all the same.
    assert set(jobs.before_stop(units)) == set(units)


def test_a_unit_may_name_itself():
    units, _ = closure(Files(a=unit(after=["a"], before=["a"], requires=["a"])), "a")
    assert jobs.before_start(units) == {"a.service": frozenset()}


def test_what_stops_with_a_unit():
    files = Files(
        a=unit(),
        b=unit(requires=["a"]),
        c=unit(part_of=["b"]),
        d=unit(binds_to=["c"]),
        e=unit(wants=["a"], after=["a"]),
    )
    units, _ = closure(files, *"abcde")
    assert sorted(names(jobs.stopped_with(units, ["a.service"]))) == ["a", "b", "c", "d"]
    assert names(jobs.stopped_with(units, ["d.service", "gone.service"])) == ["d"]
