"""Scenarios: units that need one another (systemd.unit(5))."""

from __future__ import annotations

from tests.parity.stage import Stage


def _member(stage: Stage, name: str, unit: str = "", directives: str = "", ready: str = "") -> None:
    """A service that writes when it is up and when it ends; it is up when that was written."""
    stage.service(
        f"{directives}ExecStartPre=/bin/sh -c '{ready}echo {name} up >>trace'\n"
        f"ExecStart=/bin/sh -c 'exec sleep 1000'\n"
        f"ExecStopPost=/bin/sh -c 'echo {name} down >>trace'\n",
        name=f"{name}.service",
        unit=unit,
    )


def what_is_required_starts_before(stage: Stage) -> None:
    _member(stage, "beta", ready="sleep 0.3; ")
    _member(stage, "alpha", "Requires=beta.service\nAfter=beta.service\n")
    assert stage.start("alpha.service")
    assert stage.trace() == ["beta up", "alpha up"]
    # The other way round at a stop: who needs it goes first.
    assert stage.stop("beta.service")
    stage.until_trace("beta up", "alpha up", "alpha down", "beta down")
    assert stage.state("alpha.service").active == "inactive"


def what_stands_before_starts_before(stage: Stage) -> None:
    _member(stage, "beta", "Before=alpha.service\n", ready="sleep 0.3; ")
    _member(stage, "alpha", "Wants=beta.service\n")
    assert stage.start("alpha.service")
    assert stage.trace() == ["beta up", "alpha up"]


def without_what_is_required_it_does_not_start(stage: Stage) -> None:
    _member(stage, "beta", ready="exit 1; ")
    _member(stage, "alpha", "Requires=beta.service\nAfter=beta.service\n")
    assert not stage.start("alpha.service")
    assert stage.state("alpha.service").active == "inactive"
    assert stage.until_state("failed", "failed", "beta.service").result == "exit-code"
    assert stage.trace() == ["beta down"]


def without_what_is_wanted_it_does(stage: Stage) -> None:
    _member(stage, "beta", ready="exit 1; ")
    _member(stage, "alpha", "Wants=beta.service nothing-of-the-kind.service\nAfter=beta.service\n")
    assert stage.start("alpha.service")
    assert stage.trace() == ["beta down", "alpha up"]
    assert stage.state("beta.service").active == "failed"


def what_is_required_and_is_not_there_refuses_the_start(stage: Stage) -> None:
    _member(stage, "alpha", "Requires=nothing-of-the-kind.service\nAfter=nothing-of-the-kind.service\n")
    assert not stage.start("alpha.service")
    assert (stage.state("alpha.service").active, stage.trace()) == ("inactive", [])


def a_part_follows_at_stop_and_restart(stage: Stage) -> None:
    _member(stage, "beta")
    _member(stage, "alpha", "PartOf=beta.service\nAfter=beta.service\n")
    assert stage.start("beta.service")
    assert stage.trace() == ["beta up"]
    assert stage.start("alpha.service")
    assert stage.restart("beta.service")
    stage.until_trace("beta up", "alpha up", "alpha down", "beta down", "beta up", "alpha up")
    assert stage.stop("beta.service")
    stage.until_trace(
        "beta up", "alpha up", "alpha down", "beta down", "beta up", "alpha up", "alpha down", "beta down"
    )


def what_is_not_up_is_not_a_requisite(stage: Stage) -> None:
    _member(stage, "beta")
    _member(stage, "alpha", "Requisite=beta.service\nAfter=beta.service\n")
    assert not stage.start("alpha.service")
    assert stage.trace() == []
    assert stage.start("beta.service")
    assert stage.start("alpha.service")
    assert stage.trace() == ["beta up", "alpha up"]


def who_is_bound_ends_with_the_other(stage: Stage) -> None:
    stage.service("ExecStart=/bin/sh -c 'while [ ! -e go ]; do sleep 0.05; done'\n", name="beta.service")
    _member(stage, "alpha", "BindsTo=beta.service\nAfter=beta.service\n")
    assert stage.start("alpha.service")
    assert stage.trace() == ["alpha up"]
    stage.file("go", "")
    stage.until_trace("alpha up", "alpha down")
    stage.until_state("inactive", "dead")
    stage.until_state("inactive", "dead", "beta.service")


def who_requires_it_stays_when_the_other_ends_by_itself(stage: Stage) -> None:
    stage.service("ExecStart=/bin/sh -c 'while [ ! -e go ]; do sleep 0.05; done'\n", name="beta.service")
    _member(stage, "alpha", "Requires=beta.service\nAfter=beta.service\n")
    assert stage.start("alpha.service")
    stage.file("go", "")
    stage.until_state("inactive", "dead", "beta.service")
    assert stage.state("alpha.service").active == "active"
    assert stage.trace() == ["alpha up"]


def of_two_that_conflict_one_runs(stage: Stage) -> None:
    _member(stage, "beta")
    _member(stage, "alpha", "Conflicts=beta.service\nAfter=beta.service\n")
    assert stage.start("beta.service")
    assert stage.start("alpha.service")
    stage.until_trace("beta up", "beta down", "alpha up")
    assert stage.state("beta.service").active == "inactive"
    assert stage.start("beta.service")
    stage.until_state("inactive", "dead")


def three_in_a_row(stage: Stage) -> None:
    _member(stage, "gamma", ready="sleep 0.2; ")
    _member(stage, "beta", "Requires=gamma.service\nAfter=gamma.service\n", ready="sleep 0.2; ")
    _member(stage, "alpha", "Requires=beta.service\nAfter=beta.service\n")
    assert stage.start("alpha.service")
    assert stage.trace() == ["gamma up", "beta up", "alpha up"]


def without_an_order_they_start_side_by_side(stage: Stage) -> None:
    # Each waits for the other.
    _member(stage, "beta", ready="touch beta; while [ ! -e alpha ]; do sleep 0.05; done; ")
    _member(stage, "alpha", "Wants=beta.service\n", ready="touch alpha; while [ ! -e beta ]; do sleep 0.05; done; ")
    assert stage.start("alpha.service")
    stage.until_state("active", "running", "beta.service")
    assert sorted(stage.trace()) == ["alpha up", "beta up"]


def a_circle_of_orders_is_refused(stage: Stage) -> None:
    _member(stage, "beta", "Requires=alpha.service\nAfter=alpha.service\n")
    _member(stage, "alpha", "Requires=beta.service\nAfter=beta.service\n")
    assert not stage.start("alpha.service")
    assert stage.trace() == []
