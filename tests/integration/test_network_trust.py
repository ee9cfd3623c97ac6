"""Programs whose connections are looked into trust the sandbox's own authority, with no flag or variable set."""

from __future__ import annotations

import shutil

import pytest

from tests.integration.test_network_programs import AIOHTTP, FETCH, JAVA, REQUESTS, SMALL, interpreted
from tests.internet import Internet
from tests.sandboxed import Ended, Sandboxed

LOOKED_INTO = 'allow = [{ host = "www.example.test", methods = ["GET"] }]'


def fetched(sandboxed: Sandboxed, program: str, url: str) -> Ended:
    if program in {"requests", "aiohttp"}:
        sandboxed, command = interpreted(sandboxed, REQUESTS if program == "requests" else AIOHTTP, url)
    elif program == "java":
        (sandboxed.work / "Get.java").write_text(JAVA)
        sandboxed.world.own(sandboxed.work)
        command = ["java", "-XX:TieredStopAtLevel=1", "Get.java", url]
    else:
        command = {"curl": ["curl", "-sS", url], "node": ["node", "-e", FETCH, url]}[program]
    return sandboxed.run(*command, network=LOOKED_INTO)


@pytest.mark.parametrize("program", ["curl", "requests", "aiohttp", "node", "java"])
def test_a_page_that_is_looked_into(sandboxed: Sandboxed, web: Internet, program: str) -> None:
    done = fetched(sandboxed, program, "https://www.example.test/small")
    assert done.status == 0, done.errors
    assert done.output.strip() == SMALL
    requests = [record for record in done.records if record["event"] == "request"]
    assert [(record["method"], record["path"], record["status"]) for record in requests] == [("GET", "/small", 200)]


def test_a_child_without_an_environment(sandboxed: Sandboxed, web: Internet) -> None:
    """The store itself holds the authority: variables are only for programs that bring a store of their own."""
    curl = "env -i /usr/bin/curl -sS https://www.example.test/small"
    done = sandboxed.run("sh", "-c", curl, network=LOOKED_INTO)
    assert done.output.strip() == SMALL, done.errors


def test_git_that_is_looked_into(sandboxed: Sandboxed, web: Internet) -> None:
    url = "https://git.example.test/repositories/project.git"
    table = '{ host = "git.example.test", methods = ["GET", "POST"], paths = ["/repositories/*"] }'
    done = sandboxed.run("git", "clone", "--quiet", url, "copy", network=f"allow = [{table}]")
    assert done.status == 0, done.errors
    assert (sandboxed.work / "copy" / "file").read_text() == "two\n"
    shutil.rmtree(sandboxed.work / "copy")
    other = url.replace("repositories", "dumb")
    refused = sandboxed.run("git", "clone", "--quiet", other, "copy", network=f"allow = [{table}]")
    assert refused.status != 0
    assert "403" in refused.errors


EVENTS = """
import asyncio, aiohttp, sys
async def main():
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect("https://events.example.test/socket") as socket:
            await socket.send_str("there and back")
            print(await socket.receive_str())
        async with session.get("https://events.example.test/events?count=3&pause=0.05") as answer:
            print((await answer.text()).count("data: event"))
asyncio.run(main())
"""


def test_websockets_and_events_that_are_looked_into(sandboxed: Sandboxed, web: Internet) -> None:
    granted, command = interpreted(sandboxed, EVENTS)
    table = '{ host = "events.example.test", methods = ["GET"], paths = ["/socket", "/events"] }'
    done = granted.run(*command, network=f"allow = [{table}]")
    assert done.output.split("\n")[:2] == ["there and back", "3"], done.errors
