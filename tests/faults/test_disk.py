"""A disk that is full, or read-only, under each of osmoda's own directories and under an overlay's layer.

What a launch cannot do without is said in one sentence; what only keeps something for later (a compiled plan, a record)
is done without. Neither leaves half a file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from osmoda.host import syscalls
from tests.faults.conftest import Launch, sentence
from tests.worlds import VARIABLES, World

pytestmark = [
    pytest.mark.orphans,
    pytest.mark.usefixtures("own_mounts"),
    pytest.mark.skipif(os.getuid() != 0, reason="only root mounts a small file system"),
]
MS_REMOUNT_RDONLY = 0x20 | 0x1
LAYOUTS = ("no room", "no files", "read-only")


def directory(world: World, kind: str) -> Path:
    xdg, override = VARIABLES[kind]
    return Path(world.environment.get(override) or world.environment[xdg])


@contextlib.contextmanager
def disk(folder: Path, world: World) -> Iterator[None]:
    """A small file system over `folder`, empty."""
    options = b"mode=0700,uid=%d,gid=%d,size=256k,nr_inodes=64" % (world.uid, world.gid)
    syscalls.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options)
    try:
        yield
    finally:
        syscalls.umount2(os.fsencode(folder), syscalls.MNT_DETACH)


def fill(folder: Path, layout: str) -> None:
    """From now on it takes nothing more."""
    if layout == "read-only":
        syscalls.mount(b"", os.fsencode(folder), b"", MS_REMOUNT_RDONLY, b"")
        return
    with contextlib.suppress(OSError), open(folder / "ballast", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    if layout == "no files":
        for number in range(64):
            with contextlib.suppress(OSError):
                (folder / f"ballast-{number}").touch()


def there(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def try_disk(launch: Launch, folder: Path, layout: str, known: bool, ends: list[int]) -> None:
    """One launch; `known` when the directory holds what a launch before it has left there, else it is empty."""
    with disk(folder, launch.world):
        if known:
            launch.warm()
        fill(folder, layout)
        before = there(folder)
        done = launch.world.run(launch.argv())
        ends.append(done.returncode)
        if done.returncode == 0:
            assert (done.stdout, done.stderr) == ("done\n", "")
        else:
            assert done.returncode == 125, done.stderr
            said = sentence(done.stderr)
            # A gateway of one's own may say so when a short program has ended.
            assert done.stdout == "" or "the gateway refuses the sandbox" in said
            assert "No space left" in said or "Read-only" in said, said
        left = there(folder) - before
        assert left <= {"last-run", "uids", "osmoda/last-run", "osmoda/uids"}, f"half a file: {left}"


@pytest.mark.parametrize("kind", ["runtime", "state", "cache"])
def test_a_directory_of_its_own(launches: Callable[..., Launch], world: World, kind: str) -> None:
    launch = launches(network=True, limits=world.is_root)
    ends: list[int] = []
    for layout in LAYOUTS:
        for known in (False, True):
            what = f"{kind}, {layout}, {'known' if known else 'empty'}"
            launch.each(what, partial(try_disk, launch, directory(world, kind), layout, known, ends))
    if kind == "cache":
        assert set(ends) == {0}, "a plan that cannot be kept is compiled again"


def test_the_layer_of_an_overlay(launches: Callable[..., Launch], world: World) -> None:
    launch = launches(workspace="overlay")
    state = directory(world, "state")
    ends: list[int] = []
    for layout in LAYOUTS:
        launch.each(f"overlay, {layout}", partial(try_disk, launch, state, layout, False, ends))
    assert set(ends) == {125}, "without a place for what is written there is no overlay"


def test_the_disk_is_full_while_the_program_writes(launches: Callable[..., Launch], world: World) -> None:
    """The program learns of it as anywhere else; what it wrote before can still be thrown away."""
    write = "head -c 1000000 /dev/zero > large; echo done"
    launch = launches(workspace="overlay", command=("sh", "-c", write))
    with disk(directory(world, "state"), world):
        ended = world.run(launch.argv())
        assert (ended.returncode, ended.stdout) == (0, "done\n")
        assert "No space left" in ended.stderr
        assert "osmoda-sandbox" not in ended.stderr
        done = world.osmoda("discard", "--workspace", str(launch.work))
        assert done.returncode == 0, done.stderr
