"""`changes`, `commit` and `discard`: what an overlay workspace holds back, in words or JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from osmoda.sandbox import report, workspace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from osmoda.sandbox.workspace import Change

_LETTERS = {"added": "A", "modified": "M", "deleted": "D", "type changed": "T", "mode changed": "P"}


def tell(place: str, paths: Sequence[str] = (), *, as_json: bool) -> int:
    """Print what a commit of `paths` (all, when empty) in the workspace `place` would change."""
    found = [change for change in workspace.changes(place) if not paths or any(change.within(path) for path in paths)]
    if as_json:
        report.print_json(_records(found))
    else:
        _print(found, "nothing is pending")
    return 0


def commit(place: str, paths: Sequence[str], *, force: bool, as_json: bool) -> int:
    """Make the changes, and print those that were made."""
    made = workspace.commit(place, paths, force=force)
    if as_json:
        report.print_json(_records(made))
    else:
        _print(made, "nothing was pending")
    return 0


def discard(place: str, paths: Sequence[str], *, as_json: bool) -> int:
    """Forget the changes."""
    workspace.discard(place, paths)
    if as_json:
        report.print_json([])
    return 0


def _print(changes: Sequence[Change], nothing: str) -> None:
    for change in changes:
        print(report.clean(_line(change)))
    if not changes:
        print(nothing)


def _line(change: Change) -> str:
    name = change.path + ("/" if change.file_type == "directory" else "")
    notes = []
    if change.kind == "mode changed":
        notes.append(f"mode {change.mode:o}")
    elif change.kind != "deleted" and change.file_type == "file":
        notes.append(f"{change.size} bytes, mode {change.mode:o}")
    elif change.file_type not in ("file", "directory"):
        notes.append(change.file_type)
    if change.mode & 0o111 and change.file_type == "file" and change.kind != "deleted":
        notes.append("executable")
    if change.denied:
        notes.append("denied by a profile, never committed")
    if change.conflict:
        notes.append("the host has changed it too: --force")
    return f"{_LETTERS[change.kind]} {name}" + (f"  ({'; '.join(notes)})" if notes else "")


def _records(changes: Iterable[Change]) -> list[dict[str, Any]]:
    return [asdict(change) for change in changes]
