"""The table of directives: complete with regard to systemd's own, and told in docs/units.md."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from osmoda.supervisor.units import directives
from tests import unit_table

SYSTEMD = Path("/lib/systemd/systemd")


@pytest.mark.skipif(not SYSTEMD.exists(), reason=f"there is no {SYSTEMD}")
def test_every_directive_of_this_systemd_is_in_the_table():
    done = subprocess.run(
        [SYSTEMD, "--dump-configuration-items"], capture_output=True, text=True, check=True, timeout=60
    )
    section, found = "", {}
    for line in done.stdout.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in line:
            found.setdefault(section, set()).add(line.partition("=")[0])
    assert len(found["Service"]) > 200
    for table in (directives.SERVICE, directives.SOCKET):
        for name, rules in table.items():
            if name != "X-Osmoda":
                assert found[name] - rules.keys() == set(), f"of [{name}]"


def test_what_is_refused_says_why():
    for table in (directives.SERVICE, directives.SOCKET):
        for section, rules in table.items():
            for name, rule in rules.items():
                assert (rule.handle is None) == (rule.how == "refused"), f"[{section}] {name}"
                assert bool(rule.reason) == (rule.how in ("refused", "default only")), f"[{section}] {name}"


def test_the_document_tells_what_the_table_says():
    text = unit_table.DOCUMENT.read_text()
    told = text.partition(unit_table.BEGIN)[2].partition(unit_table.END)[0]
    assert told.strip() == unit_table.written().strip(), "run python -m tests.unit_table"
