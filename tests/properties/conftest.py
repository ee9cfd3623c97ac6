"""What properties share: the files that generated profiles name, and what need not be made anew for each example."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from osmoda.sandbox import seccomp
from tests.generated_profiles import make_world


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that generated profiles name."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True, scope="session")
def filters_once() -> Iterator[None]:
    """Nine tenths of a compilation are libseccomp's: the same filter is built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seccomp, "build", functools.lru_cache(maxsize=512)(seccomp.build))
        yield


@pytest.fixture(scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache", numbered=True)


@pytest.fixture(autouse=True)
def networks_once(no_leftovers: Path, monkeypatch: pytest.MonkeyPatch, _cache: Path) -> None:
    """Each network is encoded by a program of its own, and kept: for all tests, not for one."""
    monkeypatch.setenv("OSMODA_CACHE_DIR", str(_cache))
