"""Some of the attacks, on sandboxes that have waited in a pool. `tox run -e pooled` makes all of them there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.attacks import (
    test_proc_and_memory,
    test_system_calls,
    test_terminal_and_descriptors,
)
from tests.attacks.conftest import Attacker, as_root

ATTACKS = (
    test_proc_and_memory.test_the_commands_own_environment_holds_only_what_was_passed,
    test_system_calls.test_calls_that_no_program_in_a_sandbox_needs,
    test_terminal_and_descriptors.test_typing_into_the_terminal,
    test_terminal_and_descriptors.test_the_launchers_own_descriptors,
)


@as_root
@pytest.mark.parametrize("tier", [2], ids=["tier2"], indirect=True)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__.removeprefix("test_"))
def test_pooled(attacker: Attacker, attack: Callable[[Attacker], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSMODA_TEST_POOL", "1")
    attack(attacker)
