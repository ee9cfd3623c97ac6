"""The samples, laid out for one daemon of a test: other places than /opt, other ports of the host."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

from tests.watched import Watch
from tests.worlds import REPOSITORY

SAMPLES = REPOSITORY / "samples"


def free_port() -> int:
    """A port of the host's loopback that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class Sample:
    """One sample in a world. `agents` and `shared` are where its programs and what they share lie."""

    def __init__(self, watch: Watch, name: str, replaced: Mapping[str, str] | None = None) -> None:
        self.watch = watch
        # In place of /opt, which is not every world's to write: another folder that tier 2 may be granted to read.
        self._opt = watch.world.home / ".local" / "share" / "uv" / "python" / "opt"
        self.agents = self._opt / "agents"
        self.shared = self._opt / "shared"
        self._replaced = {"/opt/agents": str(self.agents), "/opt/shared": str(self.shared), **(replaced or {})}
        for folder in (self.agents, self.shared):
            folder.mkdir(parents=True)
        source = SAMPLES / name
        self.profiles = self._configuration() / "profiles"
        self.profiles.mkdir(parents=True)
        for path in sorted(source.iterdir()):
            if path.suffix == ".service":
                watch.file(path.name, self._text(path))
            elif path.name == "profiles":
                for profile in path.iterdir():
                    (self.profiles / profile.name).write_text(self._text(profile))
            else:
                shutil.copytree(path, self.agents / path.name)
                for program in (self.agents / path.name).rglob("*.py"):
                    program.write_text(self._text(program))
        self.own()

    def _configuration(self) -> Path:
        """Where osmoda of this world looks for profiles."""
        environment = self.watch.world.environment
        if "OSMODA_CONFIG_DIR" in environment:
            return Path(environment["OSMODA_CONFIG_DIR"])
        return Path(environment["XDG_CONFIG_HOME"]) / "osmoda"

    def _text(self, path: Path) -> str:
        text = path.read_text()
        for old, new in self._replaced.items():
            text = text.replace(old, new)
        return text

    def folder(self, path: Path) -> Path:
        """Make a folder of the world's user."""
        path.mkdir(parents=True)
        self.own()
        return path

    def own(self) -> None:
        """Give all of it to the world's user."""
        self.watch.world.own(self.watch.world.home, self._configuration())
