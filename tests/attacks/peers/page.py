"""The page of peers: one table, attack by tool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from osmoda.sandbox.battery import ATTACKS, Answer

STOPPED, THROUGH, NOT_RUN = "stopped", "**got through**", "not run"

_KILLED = "it ended by signal 31"  # SIGSYS: a filter that kills (seccomp(2))

INTRODUCTION = """\
# The same attacks in other sandboxes

The attack battery of `osmoda-sandbox verify`, run as a program in other tools, each in the strictest set-up that its
own manual gives (`tests/attacks/peers/set_ups.py`; the command lines stand below). The attacker is an ordinary user,
on Linux {kernel}. Made by one command, as root: `make peers`. It is not a part of the tests.

- **stopped**: the kernel refused, or what was to be attacked is not in view.
- **got through**: the attack did what it does outside.
- **not run**: the attack could not be made in that tool, so nothing is known.

Attacks that do not work outside either, for this user on this host, are left out: nothing was stopped there. They are
listed at the end.

A tool that stops more is not better at what it is for. Bubblewrap and nsjail leave the system call filter to whoever
calls them, and their manuals give none: with a filter of your own much of the table of system calls is stopped there,
too. The terminal that is typed into is one that the attack opens itself: bubblewrap keeps the caller's own away
(`--new-session`). sandlock makes no namespaces, on purpose: there pid 1 is its launcher. "got through" in system calls
means surface that a program can reach, not an escape.
"""


@dataclass(frozen=True)
class Column:
    """One tool: `answers` by the name of the attack; `stays`: its daemon was still there when all was over."""

    name: str
    version: str
    command: str
    answers: Mapping[str, Answer]
    stays: bool
    errors: str

    def verdict(self, attack: str) -> str:
        """One cell."""
        answer = self.answers.get(attack)
        if answer is not None and answer.text == _KILLED:
            return STOPPED
        if answer is None or answer.kind == "failed":
            return NOT_RUN
        if attack == "stay" and answer.kind == "gained":
            return THROUGH if self.stays else STOPPED
        return THROUGH if answer.kind == "gained" else STOPPED


def written(columns: Sequence[Column], kernel: str) -> str:
    """The page."""
    *tools, outside = columns
    control = {name for name, answer in outside.answers.items() if answer.kind == "gained"}
    parts = [INTRODUCTION.format(kernel=kernel)]
    names = list(outside.answers)
    for family in dict.fromkeys(ATTACKS[name].family for name in names):
        rows = [name for name in names if ATTACKS[name].family == family and name in control]
        if rows:
            parts.append(_table(family, rows, tools))
    parts += [
        _sums(names, control, tools),
        _worse(names, control, tools),
        _not_run(names, control, tools),
        _commands(tools),
    ]
    left_out = [f"- {ATTACKS[name].title}: {outside.answers[name].text}" for name in names if name not in control]
    parts.append("## Without a control here\n\n" + "\n".join(left_out) + "\n")
    return "\n".join(parts)


def _table(family: str, rows: Sequence[str], tools: Sequence[Column]) -> str:
    lines = [f"## {family[0].upper()}{family[1:]}\n", _row(["", *(tool.name for tool in tools)])]
    lines.append("|---|" + "---|" * len(tools))
    lines += [_row([ATTACKS[name].title.replace("|", "\\|"), *(tool.verdict(name) for tool in tools)]) for name in rows]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _sums(names: Sequence[str], control: set[str], tools: Sequence[Column]) -> str:
    lines = ["## Sums\n", _row(["", *(f"{tool.name} {tool.version}" for tool in tools)]), "|---|" + "---|" * len(tools)]
    for verdict in (STOPPED, THROUGH, NOT_RUN):
        counts = [str(sum(tool.verdict(name) == verdict for name in names if name in control)) for tool in tools]
        lines.append(_row([verdict.strip("*"), *counts]))
    return "\n".join(lines) + "\n"


def _worse(names: Sequence[str], control: set[str], tools: Sequence[Column]) -> str:
    """Rows that are open in one of ours and closed in a peer."""
    ours = [tool for tool in tools if tool.name.startswith("osmoda")]
    peers = [tool for tool in tools if tool not in ours]
    lines = []
    for name in names:
        closed = ", ".join(peer.name for peer in peers if peer.verdict(name) == STOPPED)
        open_in = [mine for mine in ours if name in control and mine.verdict(name) != STOPPED and closed]
        title = ATTACKS[name].title
        lines += [f"- {title}: {mine.verdict(name)} in {mine.name}; stopped by {closed}" for mine in open_in]
    text = "\n".join(lines) if lines else "None: no attack gets through in a tier that a peer stops."
    return f"## Where a peer is better\n\n{text}\n"


def _commands(tools: Sequence[Column]) -> str:
    lines = ["## Command lines\n", "WORK is a folder of the attacker's, PEERS where the tools were installed.\n"]
    for tool in tools:
        note = f" ({tool.errors})" if tool.errors else ""
        lines.append(f"{tool.name} {tool.version}{note}:\n\n```\n{tool.command}\n```\n")
    return "\n".join(lines)


def _not_run(names: Sequence[str], control: set[str], tools: Sequence[Column]) -> str:
    """Why what was not run was not."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for tool in tools:
        for name in names:
            if name in control and tool.verdict(name) == NOT_RUN:
                answer = tool.answers.get(name)
                reason = answer.text if answer is not None else tool.errors or "no answer came"
                reasons.setdefault((tool.name, reason), []).append(ATTACKS[name].title)
    lines = [f"- {tool}, {reason}: {'; '.join(titles)}" for (tool, reason), titles in reasons.items()]
    return "## Not run\n\n" + ("\n".join(lines) or "Nothing.") + "\n"
