"""`osmoda-watch`, where it begins: a unit's command that systemd starts loads nothing of the verbs for people."""

from __future__ import annotations

import sys


def main() -> int:
    """The command; its exit code."""
    if sys.argv[1:2] == ["exec"]:
        from osmoda.supervisor.systemd import execution

        return execution.entry(sys.argv[2:])
    from osmoda.supervisor.command import verbs

    return verbs.main()
