"""A run looked on at: the tracer, and the observer that it tells."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from osmoda.sandbox.learning.tracer import Tracer
from osmoda.sandbox.learning.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def observing(program: str) -> Iterator[tuple[Watch, Callable[[int], None]]]:
    """What is seen of a run of `program`, and what its launch calls with the first process's pid (`launch.observe`).

    Ends when all that was traced has; raises what went wrong in the tracer.
    """
    watch = Watch(os.uname().machine, program)
    tracer = Tracer(watch)

    def observe(pid: int) -> None:
        watch.init = pid
        tracer.begin(pid)

    try:
        yield watch, observe
    finally:
        tracer.end()
