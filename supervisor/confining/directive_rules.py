"""What a rule for a directive is, and the kinds that most of them are of.

A rule is given all assignments of its directive, in order. It narrows the profile, demands something of the plan, or
refuses; ValueError from it says why a value cannot be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from osmoda.supervisor.units.values import boolean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from osmoda.supervisor.confining.narrowing import Narrowing
    from osmoda.supervisor.confining.plan_demands import Demand
    from osmoda.supervisor.units.unit import Directive

type Rule = Callable[[Narrowing, Sequence[Directive]], None]


def switch(
    *demands: Demand, also: Sequence[str] = (), narrow: Callable[[Narrowing, Directive], None] | None = None
) -> Rule:
    """A boolean that is satisfied by what `demands` look for; `also` are words that mean "yes" as well.

    `no` asks for nothing: that the sandbox is stricter is no harm. `narrow` is done first.
    """

    def rule(narrowing: Narrowing, given: Sequence[Directive]) -> None:
        last = given[-1]
        if not last.value or (last.value not in also and not boolean(last.value)):
            return
        narrowing.sandboxed(last)
        if narrow is not None:
            narrow(narrowing, last)
        for demand in demands:
            narrowing.demand(last, demand)

    return rule


def word(meanings: dict[str, Sequence[Demand] | str]) -> Rule:
    """One word out of several: each with what it demands, or with why it is refused."""

    def rule(narrowing: Narrowing, given: Sequence[Directive]) -> None:
        last = given[-1]
        if not last.value:
            return
        if last.value not in meanings:
            raise ValueError(f"is none of {', '.join(meanings)}")
        meaning = meanings[last.value]
        if isinstance(meaning, str):
            narrowing.refuse(last, meaning)
        if meaning:
            narrowing.sandboxed(last)
        for demand in meaning:
            narrowing.demand(last, demand)

    return rule


def bound(*demands: Demand) -> Rule:
    """A list of what may be had, where a sandbox gives none of it: any list is kept to."""

    def rule(narrowing: Narrowing, given: Sequence[Directive]) -> None:
        last = given[-1]
        if last.value:
            narrowing.sandboxed(last)
            for demand in demands:
                narrowing.demand(last, demand)

    return rule


def refused(why: str, *harmless: str) -> Rule:
    """What nothing here enforces; `harmless` are the values that ask for nothing, systemd's defaults."""

    def rule(narrowing: Narrowing, given: Sequence[Directive]) -> None:
        for directive in given:
            if directive.value and directive.value not in harmless:
                narrowing.refuse(directive, why)

    return rule


def inherited(what: str, own: Callable[[], int], *, base: int = 10) -> Rule:
    """What agents have from the daemon itself: satisfied where it is the same."""

    def rule(narrowing: Narrowing, given: Sequence[Directive]) -> None:
        last = given[-1]
        if last.value and int(last.value, base) != own():
            has = format(own(), "04o" if base == 8 else "d")
            narrowing.refuse(
                last, f"an agent has the {what} of the daemon, which is {has}; start the daemon with the other"
            )

    return rule
