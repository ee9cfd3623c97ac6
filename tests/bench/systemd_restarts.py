"""What systemd needs to restart a program, alone and with osmoda's drop-ins, and our own engine beside it.

Its first half boots systemd in a container on this host's kernel (tests/vm/nspawn.py); this file itself is what runs
there, with the standard library only, and leaves its figures as JSON: `systemd_restarts.py ROUNDS FILE`.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from ticks import PATIENCE, restart, tick, unit, wait_until  # noqa: E402

ALONE, CONFINED, ENGINE = "systemd", "osmoda-watch over systemd", "osmoda-watch, beside systemd"
UNITS = Path("/run/systemd/system")
WATCH = Path(sys.executable).with_name("osmoda-watch")


def measured(supplies: Path, wheel: Path, rounds: int) -> dict[str, list[float]]:
    """For each supervisor the milliseconds from SIGKILL to the new exec. Raises Missing, RuntimeError."""
    from tests.vm import systemd
    from tests.vm.nspawn import Container

    supplies.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="osmoda-vm-") as name, systemd.root_in_use(supplies, wheel) as root:
        container = Container(root, systemd.TARGET, Path(name))
        scripts = root / "checks/bench"
        shutil.rmtree(scripts, ignore_errors=True)
        scripts.mkdir(parents=True)
        for file in (Path(__file__), HERE / "ticks.py"):
            shutil.copy(file, scripts)
        tick(scripts / "tick")
        words = ["/opt/osmoda/bin/python3", "/checks/bench/systemd_restarts.py", str(rounds), "/shared/found"]
        systemd.to_do(root, shlex.join(words), container.word, "/shared/answers")
        status = container.run(600)
        if status != 0:
            raise RuntimeError(f"the measuring under systemd ended with status {status}")
        found: dict[str, list[float]] = json.loads((container.shared / "found").read_text())
        return found


# Inside


@contextlib.contextmanager
def own_engine(units: Path) -> Iterator[None]:
    """Our own engine for these units, beside systemd."""
    errors = units.with_name("daemon.err")
    with errors.open("w") as file:
        process = subprocess.Popen([WATCH, "daemon", "--units", units], stderr=file)
    try:
        wait_until(lambda: "supervising\n" in errors.read_text() or process.poll() is not None, "the daemon is up")
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


def main() -> None:
    rounds, answer = int(sys.argv[1]), Path(sys.argv[2])
    # The container's root is an overlay, which knows no idmapped mounts.
    place = Path("/srv")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    programs, outputs = {}, {}
    for number, name in enumerate((ALONE, CONFINED, ENGINE)):
        programs[name] = place / str(number) / "tick"
        programs[name].parent.mkdir()
        shutil.copy(HERE / "tick" / "tick", programs[name])
        outputs[name] = place / f"{number}.out"
        outputs[name].touch()
    units = place / "units"
    for folder in (UNITS, units):
        folder.mkdir(parents=True, exist_ok=True)
    unit(UNITS, "alone", programs[ALONE], f"append:{outputs[ALONE]}")
    unit(UNITS, "confined", programs[CONFINED], f"append:{outputs[CONFINED]}")
    unit(units, "own", programs[ENGINE], f"append:{outputs[ENGINE]}")
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    subprocess.run(["systemctl", "start", "alone"], check=True)
    subprocess.run([WATCH, "start", "confined"], check=True)
    found: dict[str, list[float]] = {name: [] for name in programs}
    with own_engine(units):
        subprocess.run([WATCH, "start", "--force", "own"], check=True)
        for output in outputs.values():
            wait_until(lambda output=output: output.stat().st_size, f"{output} has a line")
        for _ in range(rounds):
            for name, program in programs.items():
                found[name].append(restart(program, outputs[name]))
                time.sleep(0.02)
    subprocess.run(["systemctl", "stop", "alone", "confined"], check=True)
    answer.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
