"""The battery as a program: takes an order, writes a line about each attack.

    python -m osmoda.sandbox.battery ORDER

The order is a Python literal, compressed and in base64: a list of tasks, and the facts (`order`). Everything that an
attack needs is loaded before the first one. It is for places that run programs only: other tools, and sandboxes that
are kept ready.
"""

from __future__ import annotations

import ast
import base64
import posix
import sys
import zlib
from typing import TYPE_CHECKING

from osmoda.sandbox.battery import perform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from osmoda.sandbox.battery import Facts, Task


def order(tasks: Sequence[Task], facts: Facts) -> str:
    """The argument for these tasks. Where `facts["init"]` is 0 it becomes the battery's parent: whoever launched it."""
    return base64.b64encode(zlib.compress(repr((list(tasks), dict(facts))).encode())).decode()


def main() -> int:
    """Make every attack that is ordered."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m osmoda.sandbox.battery ORDER\n")
        return 2
    tasks, facts = ast.literal_eval(zlib.decompress(base64.b64decode(sys.argv[1])).decode())
    facts["init"] = facts["init"] or posix.getppid()
    perform(tasks, facts, lambda line: posix.write(1, line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
