"""What every test has: a check that it leaves nothing behind; `world`, root and an ordinary user; `online`, the same
with an internet of the tests' own."""

from __future__ import annotations

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
