"""Units from text, read as a unit's file is."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

from osmoda.supervisor.units import reading, values
from osmoda.supervisor.units.specifiers import host_here
from osmoda.supervisor.units.unit import Unit


def unit(text: str, file: str | os.PathLike[str] = "/etc/osmoda/units/agent.service", *, write: bool = False) -> Unit:
    """The service of `text`, known as `file`, which is written as well where `write` is true.

    A text without sections is that of [Service]; without ExecStart= it runs true(1).
    """
    path = Path(file)
    source = textwrap.dedent(text).strip() + "\n"
    if not source.startswith("["):
        source = f"[Service]\n{source}"
    if "ExecStart=" not in source:
        source = source.replace("[Service]\n", "[Service]\nExecStart=/usr/bin/true\n")
    if write:
        path.write_text(source)
    return reading.service(values.unit_name(path.name), [(str(path), source.encode())], host_here())
