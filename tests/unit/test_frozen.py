from __future__ import annotations

from typing import ClassVar

import pytest

from osmoda.host.frozen import fields_of, frozen, values_of


@frozen
class Point:
    x: int
    y: int = 7

    kind: ClassVar[str] = "point"

    def sum(self) -> int:
        return self.x + self.y


@frozen
class Named(Point):
    name: str = ""
    x: int  # again: stays where the base has it


@frozen
class Other:
    x: int
    y: int = 7


def test_fields_are_given_by_place_by_name_or_by_default():
    assert values_of(Point(1)) == (1, 7)
    assert values_of(Point(1, 2)) == (1, 2)
    assert values_of(Point(y=2, x=1)) == (1, 2)
    assert Point(1).sum() == 8


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        ((), {}, "Point lacks x"),
        ((1, 2, 3), {}, "takes 2 fields, got 3"),
        ((1,), {"z": 3}, "no field z"),
        ((1,), {"x": 3}, "no field x"),
    ],
)
def test_wrong_fields_are_refused(arguments, named, message):
    with pytest.raises(TypeError, match=message):
        Point(*arguments, **named)


def test_nothing_can_be_set_or_deleted():
    point = Point(1)
    for change in (lambda: setattr(point, "x", 2), lambda: setattr(point, "new", 2), lambda: delattr(point, "x")):
        with pytest.raises(AttributeError, match="Point is frozen"):
            change()
    assert point.x == 1


def test_fields_of_a_base_come_first_and_class_variables_are_none():
    assert fields_of(Named(1)) == ("x", "y", "name")
    assert fields_of(Point(1)) == ("x", "y")
    assert Point.kind == "point"


def test_equality_is_of_class_and_values():
    assert Point(1, 2) == Point(1, 2)
    assert Point(1, 2) != Point(1, 3)
    assert Point(1, 2) != Other(1, 2)
    assert Point(1, 2) != (1, 2)
    assert len({Point(1, 2), Point(1, 2), Other(1, 2)}) == 2


def test_the_repr_is_the_call_that_makes_it():
    assert repr(Point(1)) == "Point(x=1, y=7)"
    assert eval(repr(Named(1, 2, "n"))) == Named(1, 2, "n")
