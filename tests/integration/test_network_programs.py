"""Ordinary programs find the listed names, with no proxy variable set, and no others; each says why in the log."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.internet import Internet
from tests.internet_servers import Database, Ssh, postgres_programs
from tests.sandboxed import Ended, Sandboxed

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
SMALL = "x" * 1023

REQUESTS = "import requests, sys; sys.stdout.write(requests.get(sys.argv[1], timeout=20).text)"
AIOHTTP = """
import aiohttp, asyncio, ssl, sys
async def main():
    async with aiohttp.ClientSession() as session, session.get(sys.argv[1]) as answer:
        sys.stdout.write(await answer.text())
asyncio.run(main())
"""
FETCH = """
fetch(process.argv[1]).then(answer => answer.text())
    .then(text => process.stdout.write(text), error => { console.error(error); process.exit(1) })
"""
JAVA = """
import java.net.URI;
import java.net.http.*;
class Get {
    public static void main(String[] words) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(words[0])).build();
        System.out.print(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
}
"""


def interpreted(sandboxed: Sandboxed, source: str, *arguments: str) -> tuple[Sandboxed, list[str]]:
    """The tests' own interpreter with its packages, in tier 1, which may read them."""
    trees = sorted({os.path.realpath(sys.base_prefix), os.path.realpath(sys.prefix)})
    granted = replace(sandboxed, tier=1, filesystem=f"read = {json.dumps(trees)}")
    packages = sysconfig.get_path("purelib")
    program = f"import sys; sys.path.append({packages!r})\n{source}"
    return granted, [os.path.realpath(sys.executable), "-c", program, *arguments]


def fetched(sandboxed: Sandboxed, program: str, url: str, **rules: Sequence[str]) -> Ended:
    """What `program` makes of a URL inside."""
    environment = {"REQUESTS_CA_BUNDLE": BUNDLE, "SSL_CERT_FILE": BUNDLE, "NODE_EXTRA_CA_CERTS": BUNDLE}
    sandboxed = replace(sandboxed, environment=environment)
    if program in {"requests", "aiohttp"}:
        sandboxed, command = interpreted(sandboxed, REQUESTS if program == "requests" else AIOHTTP, url)
    elif program == "java":
        (sandboxed.work / "Get.java").write_text(JAVA)
        sandboxed.world.own(sandboxed.work)
        command = ["java", "-XX:TieredStopAtLevel=1", "Get.java", url]
    else:
        command = {"curl": ["curl", "-sS", "-m", "20", url], "node": ["node", "-e", FETCH, url]}[program]
    return sandboxed.run(*command, **rules)


@pytest.mark.parametrize("program", ["curl", "requests", "aiohttp", "node", "java"])
def test_a_page_over_tls(sandboxed: Sandboxed, web: Internet, program: str) -> None:
    done = fetched(sandboxed, program, "https://www.example.test/small", allow=["www.example.test"])
    assert done.status == 0, done.errors
    assert done.output.strip() == SMALL
    (record,) = [one for one in done.of("www.example.test") if one["event"] == "connection"]
    assert (record["verdict"], record["protocol"]) == ("allow", "tls")
    assert record["action"] in {"spliced", "ended"}  # a program may end before its connection does
    assert record["bytes_down"] > 1024

    other = fetched(sandboxed, program, "https://other.example.test/small", allow=["www.example.test"])
    assert other.status != 0
    assert SMALL not in other.output
    assert other.reasons() == ["other.example.test is not in network.allow of the command line"]
    assert other.of("other.example.test")


def test_git_over_https(sandboxed: Sandboxed, web: Internet) -> None:
    clone = ["git", "clone", "--quiet", "https://git.example.test/dumb/project.git", "copy"]
    done = sandboxed.run(*clone, allow=["git.example.test"])
    assert done.status == 0, done.errors
    assert (sandboxed.work / "copy" / "file").read_text() == "two\n"
    shutil.rmtree(sandboxed.work / "copy")
    refused = sandboxed.run(*clone, allow=["www.example.test"])
    assert refused.status != 0
    assert "git.example.test is not in network.allow" in refused.reasons()[0]


def test_git_over_ssh(sandboxed: Sandboxed, git_server: Ssh) -> None:
    work = sandboxed.work
    (work / "key").write_text(git_server.key)
    (work / "key").chmod(0o600)
    (work / "known").write_text(git_server.known_hosts("git.example.test"))
    sandboxed.world.own(work)
    ssh = f"ssh -F none -i {work}/key -o IdentitiesOnly=yes -o UserKnownHostsFile={work}/known -o BatchMode=yes"
    inside = replace(sandboxed, environment={"GIT_SSH_COMMAND": ssh})
    clone = ["git", "clone", "--quiet", git_server.url, "copy"]
    done = inside.run(*clone, allow=["git.example.test:22"])
    assert done.status == 0, done.errors
    assert (work / "copy" / "file").read_text() == "two\n"
    shutil.rmtree(work / "copy")
    refused = inside.run(*clone, allow=["git.example.test"])  # port 443 only
    assert refused.status != 0
    assert "allows only port 443" in refused.reasons()[0]


@pytest.mark.parametrize(("project", "answer"), [("wheeled", "41"), ("sourced", "42")])
def test_pip(sandboxed: Sandboxed, package_index: str, project: str, answer: str) -> None:
    source = "import runpy; sys.argv[0] = 'pip'; runpy.run_module('pip', run_name='__main__')"
    words = ["install", "--quiet", "--no-cache-dir", "--disable-pip-version-check", "--target", "packages"]
    granted, command = interpreted(sandboxed, source, *words, "--index-url", package_index, "--retries", "0", project)
    granted = replace(granted, environment={"PIP_CERT": BUNDLE, "SSL_CERT_FILE": BUNDLE})
    done = granted.run(*command, allow=["pypi.example.test"])
    assert done.status == 0, done.errors
    module = sandboxed.work / "packages" / f"{project}.py"
    assert module.read_text() == f"ANSWER = {answer}\n"
    shutil.rmtree(module.parent)
    refused = granted.run(*command, allow=["www.example.test"])
    assert refused.status != 0
    assert refused.of("pypi.example.test")
    assert not module.exists()


def test_psql(sandboxed: Sandboxed, database: Database) -> None:
    where = f"host={database.host} user={database.user} dbname={database.name} sslmode=verify-full sslrootcert={BUNDLE}"
    inside = replace(sandboxed, environment={"PGPASSWORD": database.password})
    command = [str(postgres_programs() / "psql"), "-XAt", where, "-c", "select sum(n) from numbers"]
    done = inside.run(*command, allow=[f"{database.host}:5432"])
    assert done.status == 0, done.errors
    assert done.output == "500500\n"
    refused = inside.run(*command, allow=[database.host])
    assert refused.status != 0
    assert "allows only port 443" in refused.reasons()[0]


def test_no_proxy_variable_and_no_certificate_of_ours_is_set(sandboxed: Sandboxed, web: Internet) -> None:
    done = sandboxed.run("env", allow=["www.example.test"])
    names = {line.partition("=")[0].lower() for line in done.output.splitlines()}
    assert not {name for name in names if "proxy" in name or "cert" in name or "ca_bundle" in name}
    assert not Path("/etc/osmoda/ca-certificates.crt").exists()
