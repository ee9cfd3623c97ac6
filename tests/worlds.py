"""The `world` fixture: the same test as root and as an ordinary user with a home of its own.

    def test_true(world):
        assert world.osmoda("run", "--tier", "2", "--", "true").returncode == 0

"root" runs things directly. "user" runs them as a uid that owns nothing else, with the interpreter and the project in
view (`enter_world.py`). When the suite itself is run by an ordinary user, "user" is that user and "root" is skipped.
"""

from __future__ import annotations

import inspect
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.pooled import START

REPOSITORY = Path(__file__).resolve().parent.parent
ENTER_WORLD = Path(__file__).with_name("enter_world.py")
POOLED = Path(__file__).with_name("pooled.py")
FIRST_UID = 12345  # the user's uid; each worker of a parallel run has its own, counted up from here
SECONDS = 60.0  # after which a command that a test runs is killed and the test fails

# Where an ordinary user's osmoda keeps its files, and where root's does in place of the system's directories.
VARIABLES = {
    "state": ("XDG_STATE_HOME", "OSMODA_STATE_DIR"),
    "cache": ("XDG_CACHE_HOME", "OSMODA_CACHE_DIR"),
    "config": ("XDG_CONFIG_HOME", "OSMODA_CONFIG_DIR"),
    "runtime": ("XDG_RUNTIME_DIR", "OSMODA_RUNTIME_DIR"),
}

# What `World.call` runs in the fresh process.
CALL = """
import importlib.util, pickle, sys
file, name, function, repository, channel = sys.argv[1:]
sys.path.insert(0, repository)
spec = importlib.util.spec_from_file_location(name, file)
module = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
arguments = pickle.load(sys.stdin.buffer)
answer = getattr(module, function)(*arguments)
with open(int(channel), "wb") as answers:
    pickle.dump(answer, answers)
"""


class Program(subprocess.Popen[Any]):
    """A program that a test has started: nobody waits for it for ever, and a block that fails ends it.

    Without that, an assertion that fails while the program waits for its input would not be heard of: at the end of the
    block it is waited for.
    """

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, traceback)

    def wait(self, timeout: float | None = None) -> int:
        return super().wait(SECONDS if timeout is None else timeout)

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        return super().communicate(input, SECONDS if timeout is None else timeout)


@dataclass(frozen=True)
class World:
    """Somebody to run things as. `tmp` is a directory of theirs, `home` lies in it."""

    name: str
    uid: int
    gid: int
    tmp: Path
    environment: Mapping[str, str]

    @property
    def is_root(self) -> bool:
        return self.uid == 0

    @property
    def home(self) -> Path:
        return self.tmp / "home"

    def argv(self, command: Sequence[str | os.PathLike[str]], cwd: str | os.PathLike[str] | None = None) -> list[str]:
        """The argument vector that, started by the tests' own process, runs `command` in this world."""
        words = [os.fspath(word) for word in command]
        if self.uid == os.getuid():
            return words
        spec = {"uid": self.uid, "gid": self.gid, "cwd": os.fspath(cwd or self.tmp), "paths": self._paths()}
        return [sys.executable, "-I", "-S", str(ENTER_WORLD), json.dumps(spec), *words]

    def popen(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Program:
        """Start `command`; its pid is the command's own. `env` is added to this world's environment."""
        environment = {**self.environment, **(env or {})}
        here = cwd if self.uid == os.getuid() else None
        return Program(self.argv(command, cwd), cwd=here or self.tmp, env=environment, **options)

    def run(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        input: Any = None,
        timeout: float = SECONDS,
        check: bool = False,
        text: bool = True,
        **options: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Run `command` to its end; what it prints is captured as text unless the options say otherwise."""
        options.setdefault("stdin", subprocess.PIPE if input is not None else subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        with self.popen(command, text=text, **options) as process:
            output, errors = process.communicate(input, timeout)
        result = subprocess.CompletedProcess(list(command), process.returncode, output, errors)
        if check and result.returncode != 0:
            pytest.fail(f"{result.args} as {self.name} exited with {result.returncode}:\n{output}\n{errors}")
        return result

    def python(self, source: str | Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run Python source, or a file of it, with the interpreter and the packages that the tests run with."""
        start = [str(source)] if isinstance(source, Path) else ["-c", inspect.cleandoc(source)]
        return self.run([sys.executable, *start, *arguments], **options)

    def call[Answer](self, function: Callable[..., Answer], *arguments: Any, timeout: float = SECONDS) -> Answer:
        """Call a module-level function of a test module in a fresh, single-threaded process of this world.

        Arguments and answer are pickled. An exception fails the test with the traceback of the other side.
        """
        module = inspect.getmodule(function)
        assert module is not None, f"{function} does not come from a module"
        assert module.__file__ is not None, f"{module} does not come from a file"
        with tempfile.TemporaryFile() as answer:
            channel = answer.fileno()
            names = [module.__file__, module.__name__, function.__name__, str(REPOSITORY), str(channel)]
            argv = [sys.executable, "-c", CALL, *names]
            result = self.run(argv, input=pickle.dumps(arguments), text=False, timeout=timeout, pass_fds=(channel,))
            sys.stdout.write(result.stdout.decode(errors="replace"))
            if result.returncode != 0:
                errors = result.stderr.decode(errors="replace")
                pytest.fail(
                    f"{function.__name__} as {self.name} ended with {result.returncode}:\n{errors}", pytrace=False
                )
            sys.stderr.write(result.stderr.decode(errors="replace"))
            answer.seek(0)
            value: Answer = pickle.load(answer)
            return value

    def osmoda(self, *arguments: str | os.PathLike[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run the `osmoda-sandbox` command of the environment that the tests run in."""
        return self.run(self.osmoda_argv(*arguments), **options)

    def egress(self, *arguments: str | os.PathLike[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run the `osmoda-egress` command, likewise."""
        return self.run(self.osmoda_argv(*arguments, command="osmoda-egress"), **options)

    @staticmethod
    def osmoda_argv(*arguments: str | os.PathLike[str], command: str = "osmoda-sandbox") -> list[str]:
        script = Path(sys.executable).with_name(command)
        words = [str(script)]
        if not script.exists():
            # A development environment that sees the checkout's packages: the same script, uninstalled.
            words = [sys.executable, "-I", "-S", str(REPOSITORY / "packaging" / command)]
        if arguments[:1] == ("run",) and os.environ.get("OSMODA_TEST_POOL"):
            words = ["sh", "-c", START, sys.executable, str(POOLED), *words]
        return [*words, *map(os.fspath, arguments)]

    def own(self, *paths: Path) -> None:
        """Give files and directories, with all that is in them, to this world's user."""
        for top in paths:
            for path in (top, *top.rglob("*")):
                os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def _paths(self) -> list[str]:
        runtime = self.environment.get("XDG_RUNTIME_DIR", str(self.tmp))
        return [str(REPOSITORY), sys.prefix, sys.base_prefix, sys.exec_prefix, str(self.tmp), runtime]


def worker_number() -> int:
    """0 for the first worker of a parallel run, and when there is only one process."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def make_directories(runtime: Path, others: Path, *, for_root: bool | None = None) -> dict[str, str]:
    """Make the directories that osmoda keeps files in, and give the variables that name them."""
    variables = {}
    for kind, (xdg, override) in VARIABLES.items():
        folder = runtime if kind == "runtime" else others / kind
        folder.mkdir(mode=0o700)
        is_root = os.getuid() == 0 if for_root is None else for_root
        variables[override if is_root else xdg] = str(folder)
    return variables


def make_world(name: str, tmp: Path, runtime: Path) -> World:
    """The world `name`, its `tmp` filled with a home and osmoda's directories, all of them owned by its user."""
    mine = os.getuid()
    if name == "root" or mine != 0:
        uid, gid = mine, os.getgid()
    else:
        uid = gid = FIRST_UID + worker_number()
    environment = {
        "PATH": os.pathsep.join(
            [os.path.dirname(sys.executable), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        ),
        "HOME": str(tmp / "home"),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        **make_directories(runtime, tmp, for_root=uid == 0),
    }
    (tmp / "home").mkdir(mode=0o700)
    tmp.chmod(0o755)
    world = World(name, uid, gid, tmp, environment)
    if uid != mine:
        world.own(tmp, runtime)
    return world


@pytest.fixture(params=["root", "user"])
def world(request: pytest.FixtureRequest, no_leftovers: Path) -> Iterator[World]:
    """Root, and an ordinary user: each test that asks for it runs as both."""
    name: str = request.param
    if name == "root" and os.getuid() != 0:
        pytest.skip("needs to be root, which the test run is not: start it with sudo")
    tmp = Path(tempfile.mkdtemp(prefix="osmoda-world-"))
    try:
        yield make_world(name, tmp, no_leftovers / "world")
    finally:
        shutil.rmtree(tmp, onexc=_open_and_retry)


def _open_and_retry(remove: Callable[[str], object], path: str, error: BaseException) -> None:
    """overlayfs leaves a directory of mode 000, which an ordinary user must open before it can be removed."""
    if not isinstance(error, PermissionError):
        raise error
    folder = path if remove in {os.open, os.scandir, os.lstat} else os.path.dirname(path)
    if os.path.islink(folder):
        raise error  # chmod would follow it
    os.chmod(folder, 0o700)
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
