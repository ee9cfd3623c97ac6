"""What every test has: a check that it leaves nothing behind; `world`, root and an ordinary user; `online`, the same
with an internet of the tests' own."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No example must keep a time: on a busy machine each process stands still for seconds now and then.
settings.register_profile("untimed", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

pytest_plugins = [
    "pytester",
    "tests.worlds",
    "tests.leftovers",
    "tests.ledgers",
    "tests.internet",
    "tests.internet_servers",
    "tests.sandboxed",
    "tests.watched",
    "tests.running",
]
