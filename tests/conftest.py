"""What every test has: a check that it leaves nothing behind, and `world`, root and an ordinary user."""

from __future__ import annotations

pytest_plugins = ["pytester", "tests.worlds", "tests.leftovers"]
