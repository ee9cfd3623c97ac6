"""What a unit means, as scenarios: what its files say, what is done to it, and what must be seen.

Each holds under systemd without osmoda, and must hold the same with both of osmoda's engines. Programs write lines to
`trace` in the scenario's folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType

from tests.parity import commands, dependencies, ends, environments, notifying, restarting, stopping, units
from tests.parity.stage import Stage

type Scenario = Callable[[Stage], None]

ROOMS = (commands, ends, restarting, stopping, notifying, environments, dependencies, units)


def all_of(room: ModuleType) -> list[Scenario]:
    """The scenarios of one module, in its order."""
    return [
        value
        for name, value in vars(room).items()
        if callable(value) and getattr(value, "__module__", "") == room.__name__ and not name.startswith("_")
    ]


SCENARIOS = [scenario for room in ROOMS for scenario in all_of(room)]

USUAL = frozenset(
    {
        commands.a_program_runs_until_it_is_stopped,
        commands.a_oneshot_ends_with_the_command_that_fails,
        commands.all_commands_in_their_order,
        commands.a_reload_may_be_a_signal_to_the_program,
        ends.another_exit_is_a_failure,
        ends.an_end_by_a_signal_is_a_failure,
        ends.a_program_that_is_not_there_fails_the_start,
        restarting.a_killed_program_comes_back,
        restarting.restarts_end_at_the_start_limit,
        stopping.who_does_not_end_in_time_is_killed,
        stopping.all_processes_hear_the_signal_to_end,
        stopping.mixed_is_the_signal_for_the_program_and_a_kill_for_the_rest,
        notifying.a_service_is_up_when_it_says_so,
        notifying.a_watchdog_that_is_not_fed_ends_the_service,
        environments.variables_from_a_file,
        environments.variables_in_arguments,
        environments.without_its_directory_a_service_does_not_start,
        environments.what_systemd_confines_is_confined,
        dependencies.what_is_required_starts_before,
        dependencies.a_part_follows_at_stop_and_restart,
        units.a_drop_in_changes_a_unit,
        units.a_socket_starts_its_service_at_the_first_connection,
        units.an_unhealthy_agent_is_restarted,
    }
)
"""What every test run has time for."""

OF_OSMODA = frozenset({units.an_unhealthy_agent_is_restarted})
"""What there is not in systemd."""


def chosen(room: ModuleType) -> list[Scenario]:
    """The scenarios of a module that are run: the usual ones, or with OSMODA_TEST_PARITY=all all."""
    everything = os.environ.get("OSMODA_TEST_PARITY") == "all"
    return [scenario for scenario in all_of(room) if everything or scenario in USUAL]
