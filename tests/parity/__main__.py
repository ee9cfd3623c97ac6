"""Run the scenarios under systemd: `python -m tests.parity [ENGINE] [SCENARIO…]`, as root.

Prints a line for each; the exit status is 1 when one fails.
"""

from __future__ import annotations

import subprocess
import sys
import time
import traceback

from tests.parity import under_systemd
from tests.parity.confined import Confined
from tests.parity.plain import Plain
from tests.parity.scenarios import OF_OSMODA, ROOMS, SCENARIOS, all_of, chosen
from tests.parity.stage import Engine, staged

ENGINES: dict[str, type[Engine]] = {"plain": Plain, "confined": Confined}


def main() -> int:
    """Run the scenarios that are named on the command line, or the chosen ones, on the engines named there, or all."""
    own = all_of(under_systemd)
    names = {scenario.__name__ for scenario in (*SCENARIOS, *own)}
    if unknown := {*sys.argv[1:]} - names - {*ENGINES}:
        print(f"there is no scenario or engine {', '.join(sorted(unknown))}")
        return 2
    usual = {scenario for room in ROOMS for scenario in chosen(room)}
    failed = 0
    for kind, make in ENGINES.items():
        if {*sys.argv[1:]} & {*ENGINES} and kind not in sys.argv[1:]:
            continue
        engine = make()
        offered = [*SCENARIOS, *own] if kind == "confined" else [one for one in SCENARIOS if one not in OF_OSMODA]
        wanted = [scenario for scenario in offered if scenario.__name__ in sys.argv[1:]]
        for scenario in wanted if {*sys.argv[1:]} & names else [one for one in offered if one in usual or one in own]:
            began = time.monotonic()
            try:
                with staged(engine) as stage:
                    scenario(stage)
            except (AssertionError, OSError, ValueError, subprocess.SubprocessError):
                failed += 1
                print(f"FAILED {kind}: {scenario.__name__}", traceback.format_exc(limit=3), sep="\n", flush=True)
                subprocess.run(["journalctl", "--lines=15", "--output=short-monotonic", "--no-pager"], check=False)
            else:
                print(f"ok     {kind}: {scenario.__name__} ({time.monotonic() - began:.1f} s)", flush=True)
    print(f"{failed} failed" if failed else "all passed", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
