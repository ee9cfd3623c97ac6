"""The sample of two agents that work together: what they do, what of it is on the ledger, and what neither can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from osmoda.sandbox import Sandbox
from osmoda.supervisor.confining.confinement import confine
from osmoda.supervisor.units.loading import Loader
from tests.ledgers import events_of
from tests.sampled import Sample
from tests.watched import PYTHON, Watch, eventually
from tests.worlds import World

TOPICS = ("black-holes", "deep-sea-fish")


@pytest.fixture
def pipeline(watch: Watch) -> Sample:
    sample = Sample(watch, "pipeline")
    sample.folder(sample.shared / "research")
    sample.folder(sample.agents / "writer" / "documents")
    return sample


def test_research_becomes_documents(recorded: World, pipeline: Sample) -> None:
    watch = pipeline.watch
    watch.up()
    watch.do("start", "research-agent")
    watch.wait_for_line("research-agent", "no more topics")
    assert watch.status("writer-agent")["state"] == "active"
    documents = pipeline.agents / "writer" / "documents"
    assert {path.name for path in documents.iterdir()} == {f"{topic}.md" for topic in TOPICS}
    assert (documents / "black-holes.md").read_text() == "# black holes\n\nblack holes has 11 letters.\n"

    # What was done in the shared directory, and by whom where the kernel says so.
    notes = {str(pipeline.shared / "research" / f"{topic}.json") for topic in TOPICS}
    # One that has ended since (it comes back where the writer was not up yet) is not known any more, and not guessed.
    nobody = ("", ["research-agent"])
    who = ("research-agent", None) if watch.world.is_root else nobody

    def told() -> bool:
        makers = {event["to"]: (event["agent"], event.get("writers")) for event in files_of(watch, notes)}
        assert all(maker in (nobody, who) for maker in makers.values())
        return makers.keys() == notes and all(maker == who for maker in makers.values())

    eventually(told, "the ledger had who has made the notes")


def files_of(watch: Watch, notes: set[str]) -> list[dict[str, Any]]:
    """The renames that made the notes, once all of them are on the ledger."""
    found = [one["event"] for one in events_of(watch.world) if one["kind"] == "file"]
    made = [one for one in found if one["operation"] == "rename"]
    return made if {one["to"] for one in made} == notes else []


def tried(units: str, name: str, attempts: dict[str, str]) -> dict[str, str]:
    """What becomes of each attempt, Python expressions, in a sandbox of the unit `name`."""
    confined = confine(Loader([units]).load(name))
    program = (
        "import json, os, socket, sys\n"
        "def tried(text):\n"
        "    try:\n        eval(text)\n"
        "    except OSError as error:\n        return type(error).__name__\n"
        "    return 'done'\n"
        "print(json.dumps({name: tried(text) for name, text in json.loads(sys.argv[1]).items()}))\n"
    )
    sandbox = Sandbox(confined.profile, workspace=confined.workspace or None, agent=name)
    result = sandbox.run([PYTHON, "-I", "-c", program, json.dumps(attempts)], capture_output=True, timeout=60, cwd="/")
    assert result.stdout, result.stderr
    answers: dict[str, str] = json.loads(result.stdout)
    return answers


def test_each_does_its_own_part_only(pipeline: Sample) -> None:
    world, units = pipeline.watch.world, str(pipeline.watch.units)
    shared, documents = pipeline.shared / "research", pipeline.agents / "writer" / "documents"
    (shared / "note.json").write_text("{}")
    pipeline.own()
    attempts = {
        "write what is shared": f"open({str(shared / 'note.json')!r}, 'a').close()",
        "make what is shared": f"open({str(shared / 'new.json')!r}, 'w').close()",
        "read what is shared": f"open({str(shared / 'note.json')!r}).close()",
        "write documents": f"open({str(documents / 'x.md')!r}, 'w').close()",
        "read the other": f"open({str(pipeline.agents / 'writer' / 'main.py')!r}).close()",
        "change its own code": f"open({str(pipeline.agents / 'research' / 'main.py')!r}, 'a').close()",
    }
    control = {name: world.python(f"{text}").returncode for name, text in attempts.items()}
    assert set(control.values()) == {0}, control
    research = world.call(tried, units, "research-agent", attempts)
    assert {name for name, answer in research.items() if answer == "done"} == {
        "write what is shared",
        "make what is shared",
        "read what is shared",
    }
    writer = world.call(tried, units, "writer-agent", attempts)
    assert {name for name, answer in writer.items() if answer == "done"} == {
        "read what is shared",
        "write documents",
        "read the other",
    }


def test_the_port_is_for_whom_it_is_declared(pipeline: Sample) -> None:
    """Another agent, with the writer running, does not reach it; the research agent does."""
    watch = pipeline.watch
    (pipeline.profiles / "other.toml").write_text("schema = 1\ntier = 1\n")
    pipeline.own()
    url = "http://writer-agent.agent:8082/health"
    visit = f"import urllib.request\nprint(urllib.request.urlopen('{url}', timeout=40).read())\n"
    for name, profile in (("friend", "research-agent"), ("stranger", "other")):
        watch.unit(name, Type="oneshot", ExecStart=f"{PYTHON} -I -c {quoted(visit)}", section=f"Profile={profile}")
        Path(watch.units / f"{name}.service").write_text(
            (watch.units / f"{name}.service").read_text().replace(f"WorkingDirectory={watch.folder(name)}\n", "")
        )
        watch.world.own(watch.units)
    watch.up()
    watch.do("start", "writer-agent")
    watch.wait_for("writer-agent", health="healthy")  # it listens
    assert watch.run("start", "friend").returncode == 0
    assert "b'ready'" in watch.lines("friend")
    assert watch.run("start", "stranger").returncode == 1
    assert not any("ready" in line for line in watch.lines("stranger"))


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("%", "%%") + '"'
