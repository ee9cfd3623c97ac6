"""osmoda's own engine means by a unit what systemd means by it: the scenarios of tests/parity.

By default a selection; OSMODA_TEST_PARITY=all has all of them run. The same list runs under systemd, without osmoda and
with it, in the lane `parity` of tests/vm.
"""

from __future__ import annotations

import os
import traceback

import pytest

from tests.parity import own
from tests.parity.scenarios import ROOMS, chosen
from tests.parity.stage import staged


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__.rpartition(".")[2])
def test_a_unit_means_the_same(world, room):
    if not world.is_root:
        pytest.skip("the scenarios are the same for an ordinary user, and take their time")
    command = world.osmoda_argv(command="osmoda-watch")
    failures = []
    folder = world.tmp / "daemon"
    folder.mkdir()
    with own.running(command, folder, {"PATH": os.environ["PATH"]}) as engine:
        for scenario in chosen(room):
            try:
                with staged(engine, world.tmp) as stage:
                    scenario(stage)
            except Exception:
                failures.append(f"{scenario.__name__}\n{traceback.format_exc(limit=3)}")
    assert failures == [], "\n".join(failures)
