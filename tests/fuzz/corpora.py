"""The kept inputs of fuzz targets: `corpus/NAME/`, one file an input, named by its SHA-1 as libFuzzer does."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.lane import instrumented

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
# How often something is passed matters by its order of magnitude only.
_ORDERS = (1, 2, 3, 4, 8, 16, 32, 128)


def names() -> list[str]:
    """The targets, by their modules `fuzz_NAME`."""
    return sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py"))


def target(name: str) -> Callable[[bytes], None]:
    """What is called with each input of a target."""
    return import_module(f"tests.fuzz.fuzz_{name}").one  # type: ignore[no-any-return]


def kept(name: str) -> list[Path]:
    """The files of a target's corpus."""
    return sorted((CORPUS / name).glob("*"))


def smallest(one: Callable[[bytes], None], inputs: Iterable[bytes]) -> list[bytes]:
    """Those inputs, short ones first, that each reach something in the code under test that none before it did."""
    reached: set[tuple[object, ...]] = set()
    chosen = []
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        steps = _steps(one, data)
        if not steps <= reached:
            reached |= steps
            chosen.append(data)
    return chosen


def replace(name: str, inputs: Iterable[bytes]) -> tuple[int, int]:
    """Make the smallest of the kept inputs and `inputs` a target's corpus: how many there were, and are.

    Files whose names are no SHA-1 hold what once was a finding; they stay.
    """
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    before = [path for path in kept(name) if re.fullmatch(r"[0-9a-f]{40}", path.name)]
    chosen = smallest(target(name), [*(path.read_bytes() for path in before), *inputs])
    for path in before:
        path.unlink()
    for data in chosen:
        (folder / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
    return len(before), len(chosen)


def _steps(one: Callable[[bytes], None], data: bytes) -> set[tuple[object, ...]]:
    """The steps from line to line within the code under test, and how often each is made."""
    counts: dict[tuple[object, ...], int] = {}
    last: dict[FrameType, int] = {}
    packages = instrumented(one)

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_globals.get("__name__", "").startswith(packages):
            return None
        step = (frame.f_code, last.get(frame, 0), frame.f_lineno, event == "exception")
        counts[step] = counts.get(step, 0) + 1
        last[frame] = frame.f_lineno
        if event == "return":
            del last[frame]
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        one(data)
    finally:
        sys.settrace(before)
    return {(*step, order) for step, count in counts.items() for order in _ORDERS if count >= order}
