"""systemd itself, without osmoda: what a unit means."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

from tests.parity.stage import State

UNITS = Path("/run/systemd/system")
SHOWN = ("ActiveState", "SubState", "Result", "NRestarts", "ExecMainCode", "ExecMainStatus")
KILLED = (2, 3)  # CLD_KILLED, CLD_DUMPED of waitid(2)


class Plain:
    """The manager of the system, through systemctl."""

    def __init__(self) -> None:
        self.put_files: list[Path] = []
        self.changed = False

    def put(self, path: str, text: str) -> None:
        file = UNITS / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        self.put_files.append(file)
        self.changed = True

    def read(self) -> None:
        """Have units read again that have changed."""
        if self.changed:
            self.changed = False
            self.do("daemon-reload")

    def do(self, verb: str, *arguments: str) -> bool:
        self.read()
        done = subprocess.run(["systemctl", verb, *arguments], capture_output=True, text=True, timeout=60, check=False)
        return done.returncode == 0

    def start(self, name: str) -> bool:
        return self.do("start", name)

    def stop(self, name: str) -> bool:
        return self.do("stop", name)

    def restart(self, name: str) -> bool:
        return self.do("restart", name)

    def reload(self, name: str) -> bool:
        return self.do("reload", name)

    def begin(self, name: str) -> None:
        assert self.do("start", "--no-block", name)

    def reset(self, name: str) -> None:
        self.do("reset-failed", name)

    def state(self, name: str) -> State:
        self.read()
        words = [word for key in SHOWN for word in ("-p", key)]
        output = subprocess.run(["systemctl", "show", name, *words], capture_output=True, text=True, check=True).stdout
        shown = dict(line.split("=", 1) for line in output.splitlines())
        status = int(shown.get("ExecMainStatus") or 0)
        by_signal = int(shown.get("ExecMainCode") or 0) in KILLED
        return State(
            active=shown["ActiveState"],
            sub=shown["SubState"],
            result=shown.get("Result", ""),
            restarts=int(shown.get("NRestarts") or 0),
            code=0 if by_signal else status,
            signal=status if by_signal else 0,
        )

    def signal(self, name: str, number: int) -> None:
        assert self.do("kill", "--kill-whom=main", f"--signal={signal.Signals(number).name}", name)

    def clear(self) -> None:
        names = {file.name for file in self.put_files if file.suffix in (".service", ".socket", ".target")}
        instances = subprocess.run(
            ["systemctl", "list-units", "--all", "--plain", "--no-legend", "alpha*", "beta*", "gamma*"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        names = {name for name in names if "@." not in name} | {line.split()[0] for line in instances}
        if names:
            self.do("stop", *sorted(names))
            self.do("reset-failed", *sorted(names))
        for file in self.put_files:
            file.unlink(missing_ok=True)
            if file.parent != UNITS:
                shutil.rmtree(file.parent, ignore_errors=True)
        self.put_files.clear()
        self.changed = True
