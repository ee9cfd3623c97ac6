"""Check osmoda on a Debian kernel, and under systemd: `python -m tests.vm kernel|systemd|parity …` (README.md).

Exit status: that of the tests or checks inside, 124 when the machine gave none.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from tests.vm import kernel, parity, supplies, systemd


def interruptible() -> None:
    """From now on an interrupt, a request to end and a hang-up end this process by the way of all context managers."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.vm",
        description="Check osmoda on a Debian kernel in an emulated machine, or under systemd.",
    )
    parser.add_argument(
        "--supplies",
        type=Path,
        metavar="FOLDER",
        default=kernel.REPOSITORY / ".tox" / "vm",
        help="where kernel and root are kept; .tox/vm",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="N",
        help="after which the machine is ended; 900, and two hours for a selection of your own",
    )
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE", help="osmoda's, for the lanes with systemd; what tox has built"
    )
    parser.add_argument("lane", choices=["kernel", "systemd", "parity"], metavar="kernel|systemd|parity")
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="…",
        help="pytest's arguments, or names of checks or scenarios: not the selection",
    )
    given = parser.parse_args()
    seconds = given.seconds or (7200 if given.arguments else 900)
    wheel = given.wheel or os.environ.get("TOX_PACKAGE")
    if given.lane != "kernel" and not wheel:
        parser.error(f"the {given.lane} lane needs --wheel FILE, or to be run by tox")
    if given.lane != "kernel" and os.geteuid() != 0:
        print(f"vm: skipped: the {given.lane} lane needs to be root, to make a root file system")
        return 0
    interruptible()
    supplied = given.supplies.resolve()
    try:
        with tempfile.TemporaryDirectory(prefix="osmoda-vm-") as name:
            folder = Path(name)
            if given.lane == "kernel":
                return kernel.run(supplied, folder, given.arguments, seconds)
            lane = systemd if given.lane == "systemd" else parity
            return lane.run(supplied, Path(wheel).resolve(), folder, given.arguments, seconds)
    except supplies.Missing as missing:
        print(f"vm: {missing}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
