"""Where systemd is the engine: one agent more than fits is refused there as well."""

from __future__ import annotations

import asyncio
import os

import pytest

from osmoda.supervisor.capacity import admission, plans_file
from osmoda.supervisor.capacity.plans_file import Amount
from osmoda.supervisor.systemd import engine as systemd_engine
from osmoda.supervisor.systemd import files as systemd_files
from osmoda.supervisor.systemd.engine import SystemdEngine

GIB = 1 << 30


class Manager:
    """Stands in for systemd's: which units are up, and which were asked for."""

    def __init__(self, *up):
        self.up = {*up}
        self.jobs = []

    async def properties(self, name):
        return {"ActiveState": "active" if name in self.up else "inactive"}

    async def job(self, member, name):
        self.jobs.append((member, name))
        return "done"


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Starts units on a host with 4 GiB, on which `up` run; the outcomes and the jobs."""
    for name in ("one", "two", "three", "small"):
        most = "64M" if name == "small" else "1500M"
        text = f"[Service]\nExecStart=/usr/bin/true\nMemoryMax={most}\n[X-Osmoda]\nTier=1\n"
        (tmp_path / f"{name}.service").write_text(text)
    plans = plans_file.read(os.path.join(plans_file.SHIPPED, "plans.toml"))
    monkeypatch.setattr(plans_file, "load", lambda: plans)
    monkeypatch.setattr(systemd_engine, "systemd_path", lambda: [str(tmp_path)])
    monkeypatch.setattr(systemd_files, "confined", lambda: ["one.service", "two.service", "three.service"])
    room = admission.Admission
    monkeypatch.setattr(systemd_engine, "Admission", lambda: room(lambda: Amount(4 * GIB, 4.0, 100 * GIB)))

    async def confined(self, names):
        return {}

    monkeypatch.setattr(SystemdEngine, "confine", confined)

    def start(names, up, **options):
        manager = Manager(*up)
        outcomes = asyncio.run(SystemdEngine(manager).start(names, **options))
        return {one["unit"]: one["text"] for one in outcomes if not one["ok"]}, [name for _, name in manager.jobs]

    return start


def test_one_more_than_fits_is_refused_and_others_are_started(started):
    refused, jobs = started(["three", "small"], ["one.service", "two.service"])
    assert jobs == ["small.service"]
    assert [*refused] == ["three.service"]
    assert "three.service does not fit: it needs 1.46G of memory (its limit)" in refused["three.service"]
    assert "--force three.service" in refused["three.service"]


def test_by_force_and_where_there_is_room(started):
    assert started(["three"], ["one.service", "two.service"], forced=True) == ({}, ["three.service"])
    assert started(["three"], ["one.service"]) == ({}, ["three.service"])
    # What is up takes no more room, and several that are asked for at once count on each other.
    assert started(["one", "two"], ["one.service", "two.service"]) == ({}, ["one.service", "two.service"])
    refused, jobs = started(["one", "two", "three"], [])
    assert ([*refused], jobs) == (["three.service"], ["one.service", "two.service"])
