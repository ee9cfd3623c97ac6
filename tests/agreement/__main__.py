"""Whether osmoda reads units as systemd does: `python -m tests.agreement`, as root (README.md).

Exit status 1 where one unit has another meaning, or a refusal does not name the line that it is about.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.units import reading, specifiers, values
from osmoda.supervisor.units.loading import Loader
from osmoda.supervisor.units.specifiers import Host
from osmoda.supervisor.units.unit import Unit
from tests.agreement import compare, drawn, manager, supplies
from tests.vm.__main__ import interruptible
from tests.vm.supplies import Missing

REPOSITORY = Path(__file__).resolve().parents[2]
LEAST = 300  # units
DRAWN = 400
INSTANCE = "one-two"
PRUNED = "pruned-"


@dataclasses.dataclass
class Case:
    """A unit that systemd is asked about: its name, and its file's name and text."""

    name: str
    file: str
    text: bytes


def named(file: str) -> str:
    return file.replace("@.service", f"@{INSTANCE}.service")


def read(case: Case, host: Host) -> Unit:
    return reading.service(values.unit_name(case.name), [(case.file, case.text)], host)


def without(text: bytes, line: int) -> bytes:
    """A text without one line and what continues it, and with as many lines as before."""
    lines = text.split(b"\n")
    at = line - 1
    while True:
        goes_on = lines[at].rstrip(b"\r").endswith(b"\\") or lines[at].lstrip().startswith((b"#", b";"))
        lines[at] = b"#"
        at += 1
        if not goes_on or at == len(lines):
            return b"\n".join(lines)


def pruned(case: Case, host: Host) -> Case | None:
    """The same without the lines that are refused; None where nothing is left that could run."""
    text = case.text
    for _ in range(100):
        now = Case(PRUNED + case.name, PRUNED + case.file, text)
        try:
            read(now, host)
        except UnitError as error:
            if error.origin is None or not re.match(r"[A-Z]\w+=", error.message):
                return None
            text = without(text, error.origin.line)
        else:
            return now
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.agreement", description="Compare with systemd's reading.")
    parser.add_argument("--supplies", type=Path, default=REPOSITORY / ".tox" / "agreement", metavar="FOLDER")
    parser.add_argument("--verbose", action="store_true", help="a line for each unit")
    parser.add_argument("--drawn", type=int, default=DRAWN, metavar="N", help=f"units drawn at random; {DRAWN}")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the drawing; 1")
    given = parser.parse_args()
    if os.geteuid() != 0:
        print("agreement: skipped: making and booting a root file system needs root")
        return 0
    interruptible()
    where = given.supplies.resolve()
    where.mkdir(parents=True, exist_ok=True)
    try:
        root = supplies.root(where)
        packaged = of_packages(where, root, verbose=given.verbose)
        return int(nobody_s(where, root, given.drawn, given.seed, verbose=given.verbose) or packaged)
    except Missing as missing:
        print(f"agreement: {missing}", file=sys.stderr)
        return 1


def there(root: Path, answers: manager.Answers) -> Host:
    """The host that systemd ran on, as far as specifiers know it."""
    return dataclasses.replace(
        specifiers.host_here(),
        hostname=answers.hostname,
        machine_id=(root / "etc/machine-id").read_text().strip(),
        boot_id=answers.boot_id,
        kernel_release=answers.kernel_release,
    )


def others(units: Iterable[Unit]) -> set[str]:
    """The units that these depend on."""
    keys = compare.DEPENDENCIES.values()
    return {name for unit in units for key in keys for name in getattr(unit.dependencies, key)}


def of_packages(where: Path, root: Path, *, verbose: bool) -> int:
    folder = supplies.units(where)
    host = specifiers.host_here()
    cases = [Case(named(path.name), path.name, path.read_bytes()) for path in sorted(folder.glob("*.service"))]
    refused: dict[str, UnitError] = {}
    asked = {}
    for case in cases:
        try:
            read(case, host)
        except UnitError as error:
            refused[case.name] = error
            if rest := pruned(case, host):
                asked[rest.name] = rest
        asked[case.name] = case
    with tempfile.TemporaryDirectory(dir=where) as together:
        for case in asked.values():
            Path(together, case.file).write_bytes(case.text)
        named_there = others(read(case, host) for name, case in asked.items() if name not in refused)
        answers = manager.ask(root, Path(together), sorted({*asked} | named_there))

    def text_of(name: str) -> str:
        """The text of a unit's file: one of the packages', systemd's own, or the one that asks."""
        if name in asked:
            return asked[name].text.decode(errors="replace")
        if name == manager.ASKING:
            return manager.UNIT
        template = re.sub("@.*[.]", "@.", name)
        own = [root / "usr/lib/systemd/system" / one for one in (name, template)]
        return next((path.read_text() for path in own if path.exists()), "")

    return report(asked, refused, there(root, answers), answers.properties, text_of, verbose=verbose)


def report(
    asked: Mapping[str, Case],
    refused: Mapping[str, UnitError],
    host: Host,
    known: Mapping[str, Mapping[str, Any]],
    text_of: Callable[[str], str],
    *,
    verbose: bool,
) -> int:
    same, same_pruned, wrong = 0, 0, []
    reasons: collections.Counter[str] = collections.Counter()
    for name, case in asked.items():
        theirs = known.get(name)
        if name in refused:
            error = refused[name]
            directive = re.match(r"(\w+)=", error.message)
            line = case.text.decode(errors="replace").split("\n")[error.origin.line - 1] if error.origin else ""
            if directive and line.lstrip().startswith(directive[1]):
                reasons[f"{directive[1]}="] += 1
            elif theirs is not None and theirs["LoadState"] == "bad-setting":
                reasons["refused by systemd, too"] += 1
            else:
                wrong.append(f"{name}: the refusal does not name its line: {error}")
            if verbose:
                print(f"{name}: refused: {error}")
            continue
        if theirs is None or theirs["LoadState"] != "loaded":
            wrong.append(f"{name}: systemd does not load it ({theirs and theirs['LoadState']})")
            continue
        found = compare.differences(read(case, host), theirs, known, text_of)
        wrong += [f"{name}: {one}" for one in found]
        same += not found and not name.startswith(PRUNED)
        same_pruned += not found and name.startswith(PRUNED)
        if verbose and not found:
            print(f"{name}: the same")
    total = sum(not name.startswith(PRUNED) for name in asked)
    print(
        f"{total} units: {same} have the same values as in systemd, {sum(reasons.values())} are refused, by directive:"
    )
    print("  " + ", ".join(f"{name} {count}" for name, count in reasons.most_common()))
    print(f"{same_pruned} of those that are refused have the same values once the refused lines are taken out")
    for one in wrong:
        print(one)
    if total < LEAST:
        print(f"these are fewer than {LEAST} units")
    return int(bool(wrong) or total < LEAST)


def nobody_s(where: Path, root: Path, count: int, seed: int, *, verbose: bool) -> int:
    """The units of `drawn`: what they are, and what a start of some of them says."""
    texts, runs = drawn.units(seed, count), drawn.runs(seed, count // 4, manager.FOLDER)
    with tempfile.TemporaryDirectory(dir=where) as folder:
        together = Path(folder)
        drawn.write(together)
        for name, text in (*texts.items(), *((name, run.text) for name, run in runs.items())):
            (together / name).write_bytes(text.encode())
        names = [*drawn.LOADED, *texts, *runs]
        loader = Loader([folder], specifiers.host_here())
        readable = {name: unit for name in names if (unit := loaded(loader, name)) is not None}
        files = {name.removesuffix(".service"): run.variables for name, run in runs.items()}
        answers = manager.ask(root, together, sorted({*names} | others(readable.values())), [*runs], files)
        loader = Loader([folder], there(root, answers))
        wrong = [f"{name} is refused" for name in (*drawn.LOADED, *runs) if name not in readable]
        for name in readable:
            theirs = answers.properties.get(name)
            if theirs is None or theirs["LoadState"] != "loaded":
                wrong.append(f"{name}: systemd does not load it ({theirs and theirs['LoadState']})")
                continue
            found = compare.differences(loader.load(name), theirs, answers.properties, "".join)
            wrong += [f"{name}: {one}" for one in found]
            if verbose and not found:
                print(f"{name}: the same")
        for name, run in runs.items():
            said = answers.said.get(name.removesuffix(".service"), b"")
            wrong += [f"{name}: {one}" for one in compare.differences_when_run(readable[name], run.variables, said)]
    print(f"{len(names)} units that nobody would write: {len(readable)} are read, the others refused")
    print(f"{len(runs)} of them were started, and say their arguments and variables")
    for one in wrong:
        print(one)
    return int(bool(wrong))


def loaded(loader: Loader, name: str) -> Unit | None:
    try:
        return loader.load(name)
    except UnitError:
        return None


if __name__ == "__main__":
    sys.exit(main())
