"""Agents of three tiers on one host, as in samples/support: what they do together, and that none reaches into another.

The attacks on tier 2 come as what it is there for: code that a customer sends. Each attack first works outside.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from osmoda.sandbox import Sandbox
from osmoda.supervisor.confining.confinement import confine
from osmoda.supervisor.units.loading import Loader
from tests.sampled import Sample, free_port
from tests.watched import PYTHON, Watch, eventually

ATTACKS = """
import json, os, socket

def tried(act):
    try:
        act()
    except OSError as error:
        return type(error).__name__
    return "done"

def connect(host, port):
    socket.create_connection((host, port), 30).close()

def abstract(name):
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect("\\0" + name)

attacks = {
    "read the database": lambda: open(DATABASE, "rb").close(),
    "write the database": lambda: open(DATABASE, "r+b").close(),
    "read another's program": lambda: open(PROGRAM).close(),
    "change its own program": lambda: open(OWN, "a").close(),
    "signal the database": lambda: os.kill(TICKETS, 0),
    "signal the other agent": lambda: os.kill(OTHER, 0),
    "look into the database": lambda: open(f"/proc/{TICKETS}/environ", "rb").close(),
    "look into the other agent": lambda: open(f"/proc/{OTHER}/environ", "rb").close(),
    "speak to a service of the host": lambda: connect("127.0.0.1", SECRET),
    "speak to a socket without a file": lambda: abstract(ABSTRACT),
}
print(json.dumps({name: tried(act) for name, act in attacks.items()}))
"""


class Model(BaseHTTPRequestHandler):
    """Stands in for a model: it repeats what it is asked."""

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"text": f"the model says: {sent['prompt']}"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not on the tests' output."""


class Support:
    """The three agents, running, and what an attacker would like to reach."""

    def __init__(self, sample: Sample, tickets: int, secret: int, abstract: str) -> None:
        self.sample = sample
        self.watch = sample.watch
        self._port = tickets
        self._secret = secret
        self._abstract = abstract

    def ask(self, method: str, path: str, value: object = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request(method, path, json.dumps(value) if value is not None else None)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()

    def answered(self, question: str, code: str = "") -> str:
        """What a customer gets."""
        number = self.ask("POST", "/ticket", {"question": question, "code": code})["id"]
        return str(eventually(lambda: self.ask("GET", f"/ticket?{number}").get("answer"), "the ticket was answered"))

    def attacks(self, own: str, other: str) -> str:
        """The attacks of the agent `own`, on the database and on the agent `other`."""
        agents = self.sample.agents
        values = {
            "DATABASE": str(agents / "tickets" / "tickets.db"),
            "PROGRAM": str(agents / other / "main.py"),
            "OWN": str(agents / own / "main.py"),
            "TICKETS": self.watch.status("support-tickets")["pid"],
            "OTHER": self.watch.status(f"support-{other}")["pid"],
            "SECRET": self._secret,
            "ABSTRACT": self._abstract,
        }
        return "\n".join(f"{name} = {value!r}" for name, value in values.items()) + ATTACKS

    def outside(self, code: str) -> dict[str, str]:
        answers: dict[str, str] = json.loads(self.watch.world.python(code, check=True).stdout)
        return answers


@pytest.fixture
def support(watch: Watch) -> Iterator[Support]:
    tickets, model = free_port(), ThreadingHTTPServer(("127.0.0.1", 0), Model)
    thread = threading.Thread(target=model.serve_forever, args=(0.05,))
    thread.start()
    name = f"osmoda-test-{os.getpid()}"
    secret = socket.create_server(("127.0.0.1", 0))
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind("\0" + name)
        listener.listen()
        ports = {"8090": str(tickets), "8099": str(model.server_address[1])}
        sample = Sample(watch, "support", ports)
        watch.up()
        watch.do("start", "support-answers")
        yield Support(sample, tickets, secret.getsockname()[1], name)
    finally:
        watch.down()
        listener.close()
        secret.close()
        model.shutdown()
        thread.join(20)
        model.server_close()


def tiers_answer_tickets(support: Support) -> None:
    assert support.answered("what is the weather?") == "the model says: what is the weather?"
    assert support.answered("what does this print?", "print(6 * 7)") == "the model says: what does this print?\n42"
    tiers = {name: support.watch.status(f"support-{name}")["tier"] for name in ("tickets", "answers", "runner")}
    assert tiers == {"tickets": 0, "answers": 1, "runner": 2}


# What stops an attack: nothing of that name is mounted, no such process is there, no such port or socket.
FILES = {"read the database", "write the database", "read another's program"}
PROCESSES = {
    "signal the database",
    "signal the other agent",
    "look into the database",
    "look into the other agent",
}
SOCKETS = {"speak to a service of the host", "speak to a socket without a file"}


def judge(answers: dict[str, str]) -> None:
    assert answers.keys() == FILES | PROCESSES | SOCKETS | {"change its own program"}
    assert {answers[name] for name in FILES} == {"FileNotFoundError"}
    assert {answers[name] for name in PROCESSES} <= {"ProcessLookupError", "FileNotFoundError"}
    assert "done" not in {answers[name] for name in SOCKETS}
    assert answers["change its own program"] == "OSError"  # a read-only file system


def test_three_tiers_answer_tickets_and_what_a_customer_sends_reaches_nobody(support: Support) -> None:
    tiers_answer_tickets(support)
    code = support.attacks("runner", "answers")
    control = support.outside(code)
    assert set(control.values()) == {"done"}, control
    printed = support.answered("attack", code).partition("\n")[2]
    judge(json.loads(printed))
    # And everybody is still there, and still answers.
    assert support.answered("still there?", "print('yes')").endswith("yes")


def attacked(units: str, name: str, code: str) -> dict[str, str]:
    """What comes of `code` in a sandbox of the unit `name`: as if its program had been taken over."""
    confined = confine(Loader([units]).load(name))
    sandbox = Sandbox(confined.profile, workspace=confined.workspace or None, agent=name)
    result = sandbox.run([PYTHON, "-I", "-c", code], capture_output=True, timeout=60, cwd="/")
    assert result.stdout, result.stderr
    answers: dict[str, str] = json.loads(result.stdout)
    return answers


def test_the_agent_that_asks_the_model_reaches_nobody_but_by_the_ports_that_it_declares(support: Support) -> None:
    code = support.attacks("answers", "runner")
    control = support.outside(code)
    assert set(control.values()) == {"done"}, control
    judge(support.watch.world.call(attacked, str(support.watch.units), "support-answers", code))
    assert support.answered("still there?", "print('yes')").endswith("yes")
