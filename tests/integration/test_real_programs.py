"""Programs that agents use: they work inside tiers 1 and 2, as root and as an ordinary user.

Each runs through the installed command, with a profile file, in a workspace of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.worlds import World

REAL_HOME = os.path.expanduser("~")
WHEELS = ("six", "markupsafe")  # the second has an extension module in C


@dataclass(frozen=True)
class Place:
    """A workspace in a world, and a profile of some tier for it."""

    world: World
    tier: int
    work: Path

    def profile(self, mode: str = "direct", filesystem: str = "", network: str = "") -> Path:
        path = self.world.tmp / "profile.toml"
        path.write_text(
            f'schema = 1\ntier = {self.tier}\n[filesystem]\nworkspace = "{mode}"\n{filesystem}\n[network]\n{network}\n'
        )
        return path

    def argv(self, *command: str, **profile: str) -> list[str]:
        file = self.profile(**profile)
        return self.world.osmoda_argv("run", "--profile", file, "--workspace", self.work, "--", *command)

    def run(
        self, *command: str, env: dict[str, str] | None = None, input: str | None = None, **profile: str
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end; it must succeed and be refused nothing worth telling."""
        argv = self.argv(*command, **profile)
        result: subprocess.CompletedProcess[Any] = self.world.run(argv, env=env, input=input)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "osmoda-sandbox:" not in result.stderr
        return result

    def sh(self, script: str, **profile: str) -> str:
        """What a shell script prints; it ends at its first failing command."""
        return self.run("sh", "-euc", script, **profile).stdout

    def write(self, name: str, content: str) -> Path:
        path = self.work / name
        path.write_text(content)
        self.world.own(path)
        return path


@pytest.fixture(params=[1, 2], ids=["tier1", "tier2"])
def place(request: pytest.FixtureRequest, world: World) -> Place:
    work = world.tmp / "work"
    work.mkdir()
    world.own(work)
    return Place(world, request.param, work)


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed here")


# git

GIT = """
git config --global user.name Agent
git config --global user.email agent@sandbox
git config --global init.defaultBranch main
"""
COMMIT = """
git init --quiet origin
echo one >origin/file
git -C origin add file
git -C origin commit --quiet --message first
git clone --quiet origin clone
echo two >>clone/file
git -C clone commit --quiet --all --message second
git -C clone push --quiet origin HEAD:second
git -C origin log --all --format=%s
git -C clone fsck --strict
git -C clone status --porcelain
"""


@needs("git")
@pytest.mark.parametrize("mode", ["direct", "overlay"])
def test_git_init_commit_clone_push(place: Place, mode: str) -> None:
    assert sorted(place.sh(GIT + COMMIT, mode=mode).split()) == ["first", "second"]
    assert (place.work / "clone" / "file").exists() == (mode == "direct")


@needs("git")
def test_git_clones_a_repository_that_was_there_before(place: Place) -> None:
    """The files of the workspace belong to its user inside, so that git trusts them, and outside."""
    place.world.run(["sh", "-euc", GIT + "cd work\n" + COMMIT], check=True)
    out = place.sh(
        GIT + "git clone --quiet origin third; cd third; echo three >file; git commit -qam third; git log --format=%s"
    )
    assert out.split() == ["third", "first"]
    assert {path.stat().st_uid for path in (place.work / "third").rglob("*")} == {place.world.uid}
    log = place.world.run(["git", "-C", str(place.work / "third"), "log", "--format=%s %an"], check=True)
    assert log.stdout.splitlines()[0] == "third Agent"


# C

C_PROGRAM = r"""
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
static void *square(void *value) { long n = (long) value; return (void *) (n * n); }
int main(void) {
    long *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (fork() == 0) { *shared = 2; _exit(0); }
    wait(NULL);
    pthread_t threads[8];
    for (long i = 0; i < 8; i++) if (pthread_create(&threads[i], NULL, square, (void *) i)) return 1;
    long sum = 0;
    for (int i = 0; i < 8; i++) { void *result; pthread_join(threads[i], &result); sum += (long) result; }
    printf("%ld %ld\n", *shared, sum);
}
"""


@needs("gcc")
@pytest.mark.parametrize("mode", ["direct", "overlay"])
def test_a_c_program_is_compiled_and_run(place: Place, mode: str) -> None:
    place.write("program.c", C_PROGRAM)
    assert place.sh("gcc -O2 -Wall -pthread -o program program.c && ./program", mode=mode) == "2 140\n"


# Node

NODE_FILES = """
const fs = require('fs'), { execFileSync } = require('child_process'), { Worker } = require('worker_threads');
fs.writeFileSync('note', 'written');
fs.mkdirSync('folder/deep', { recursive: true });
fs.renameSync('note', 'folder/deep/note');
const text = fs.readFileSync('folder/deep/note', 'utf8');
const child = execFileSync('sh', ['-c', 'echo child of $1', 'sh', text]).toString().trim();
const worker = new Worker("require('worker_threads').parentPort.postMessage(6 * 7)", { eval: true });
worker.on('message', answer => console.log(text, '|', child, '|', answer));
"""
NODE_SERVER = """
const http = require('http');
const server = http.createServer((request, response) => response.end('hello ' + request.url));
server.on('error', error => console.log('listen', error.code));
server.listen(8080, '127.0.0.1', () => {
  http.get('http://127.0.0.1:8080/there', response => {
    response.on('data', data => { console.log(data.toString()); server.close(); });
  }).on('error', error => { console.log('connect', error.code); server.close(); });
});
"""


@needs("node")
def test_a_node_script_with_files_children_and_workers(place: Place) -> None:
    place.write("script.js", NODE_FILES)
    assert place.run("node", "script.js").stdout == "written | child of written | 42\n"


@needs("node")
def test_a_node_server_on_loopback_in_tier_1_only(place: Place) -> None:
    place.write("server.js", NODE_SERVER)
    result = place.world.run(place.argv("node", "server.js"))
    if place.tier == 1:
        assert (result.returncode, result.stdout) == (0, "hello /there\n")
    else:
        # Without an interface there is nothing to bind to, and Landlock refuses the port besides.
        assert result.stdout.split() in (["listen", "EACCES"], ["listen", "EADDRNOTAVAIL"])


@needs("node")
def test_tier_2_may_declare_loopback(place: Place) -> None:
    place.write("server.js", NODE_SERVER)
    assert place.run("node", "server.js", network="loopback = true").stdout == "hello /there\n"


# Java

JAVA = """
import java.nio.file.*;
import java.util.stream.*;
public class Hello {
    public static void main(String[] arguments) throws Exception {
        Files.writeString(Path.of("out"), "from java");
        int sum = IntStream.range(0, 1000).parallel().sum();
        System.out.println(Files.readString(Path.of("out")) + " " + sum);
    }
}
"""


@needs("java")
def test_java_launches_a_source_file(place: Place) -> None:
    place.write("Hello.java", JAVA)
    assert place.run("java", "Hello.java").stdout == "from java 499500\n"


# Python


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of wheels for the interpreter of the tests: downloaded once, or the session's earlier copy."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "download", "--only-binary=:all:", "--no-deps", "--dest", folder, *WHEELS], check=True)
    return folder


def interpreter(tier: int) -> tuple[str, str]:
    """An interpreter with the module venv, and the tree that a profile of the tier has to grant, if any."""
    prefix = os.path.realpath(sys.base_prefix)
    program = f"{prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    places = (
        "/usr",
        "/opt",
        "/srv",
        *(f"{REAL_HOME}/{name}" for name in (".pyenv/versions", ".local/share/uv/python")),
    )
    if tier == 2 and not prefix.startswith(tuple(f"{place}/" for place in places)) and prefix != "/usr":
        pytest.skip(f"{prefix} lies outside tier 2's ceiling: {', '.join(places)}")
    return program, "" if prefix == "/usr" else f'read = ["{prefix}"]'


def test_pip_installs_from_a_folder_of_wheels_into_a_venv(place: Place, wheels: Path) -> None:
    program, grant = interpreter(place.tier)
    shutil.copytree(wheels, place.work / "wheels")
    place.world.own(place.work)
    script = f"""
        {program} -m venv venv
        venv/bin/pip install --quiet --disable-pip-version-check --no-index --find-links wheels {" ".join(WHEELS)}
        venv/bin/python -c 'import six; from markupsafe._speedups import _escape_inner as f; print(six.u(f("<")))'
    """
    # The caller's home decides what ~ means in a ceiling; osmoda's own directories are named by other variables.
    out = place.run("sh", "-euc", script, env={"HOME": REAL_HOME}, filesystem=grant).stdout
    assert out == "&lt;\n"
    assert (place.work / "venv" / "bin" / "pip").exists()


SQLITE = """
import concurrent.futures, sqlite3, subprocess, sys, tempfile
base = sqlite3.connect("base.db")
base.execute("pragma journal_mode = wal")
base.execute("create table t (n integer primary key, s text)")
with base:
    base.executemany("insert into t (s) values (?)", ((str(n),) for n in range(1000)))
with concurrent.futures.ProcessPoolExecutor(2) as pool:
    squares = list(pool.map(pow, range(5), [2] * 5))
with tempfile.TemporaryFile() as file:
    file.write(b"x" * 5000)
print(base.execute("select count(*), sum(length(s)) from t").fetchone(), squares)
"""


def test_python_with_sqlite_and_a_process_pool(place: Place) -> None:
    program, grant = interpreter(place.tier)
    place.write("script.py", SQLITE)
    out = place.run(program, "script.py", env={"HOME": REAL_HOME}, filesystem=grant).stdout
    assert out == "(1000, 2890) [0, 1, 4, 9, 16]\n"
    assert (place.work / "base.db").stat().st_uid == place.world.uid


@needs("sqlite3")
def test_the_sqlite_shell(place: Place) -> None:
    out = place.sh("sqlite3 base.db 'create table t (n); insert into t values (1), (2); select sum(n) from t'")
    assert out == "3\n"


# Shell tools

BASH = r"""
set -m                                      # job control without a terminal
sleep 1000 & job=$!
kill %1; wait %1; echo "job ended with $?"
seq 1 1000 | tee >(wc -l >lines) | sort -rn | { head -3; cat >/dev/null; } | paste -sd,
printf '%s\n' "${PIPESTATUS[*]}"
coproc echoes { while read -r word; do echo "<$word>"; done; }
echo word >&"${echoes[1]}"; read -r answer <&"${echoes[0]}"; echo "$answer"
cat <<<"a here string"
until [ -s lines ]; do sleep 0.01; done; cat lines
"""


def test_bash_with_pipelines_jobs_and_coprocesses(place: Place) -> None:
    out = place.run("bash", "-c", BASH).stdout.splitlines()
    assert out == ["job ended with 143", "1000,999,998", "0 0 0 0 0", "<word>", "a here string", "1000"]


@pytest.mark.parametrize("mode", ["direct", "overlay"])
def test_tar_and_gzip_round_trip(place: Place, mode: str) -> None:
    script = """
        mkdir -p tree/a/b; seq 1 5000 >tree/a/b/numbers; ln -s numbers tree/a/b/link; ln tree/a/b/numbers tree/hard
        chmod 750 tree/a; touch -d 2001-02-03T04:05:06Z tree/a/b/numbers
        tar czf tree.tgz tree; mkdir out; tar xzf tree.tgz -C out; diff -r tree out/tree
        stat -c '%a %Y %h' out/tree/a out/tree/a/b/numbers; readlink out/tree/a/b/link; gzip -t tree.tgz
    """
    lines = place.sh(script, mode=mode).splitlines()
    assert lines[0].startswith("750 ")
    assert lines[1:] == ["644 981173106 2", "numbers"]


def test_a_sort_that_spills_to_files(place: Place) -> None:
    out = place.sh("seq 1 400000 | sort -R | sort -n -S 1M -T . | md5sum; seq 1 400000 | md5sum").split()
    assert out[0] == out[2]


@needs("openssl")
def test_openssl_random_and_signatures(place: Place) -> None:
    script = """
        openssl rand -hex 32 >first; openssl rand -hex 32 >second; ! cmp -s first second
        openssl genpkey -quiet -algorithm ed25519 -out key 2>/dev/null || openssl genpkey -algorithm ed25519 -out key
        openssl pkeyutl -sign -inkey key -rawin -in first -out signature
        openssl pkeyutl -verify -inkey key -rawin -in first -sigfile signature
        wc -c <first
    """
    assert place.sh(script).split() == ["Signature", "Verified", "Successfully", "65"]


def through_the_api(tier: int) -> list[object]:
    from osmoda.sandbox import Sandbox

    sandbox = Sandbox(tier=tier)
    script = "cd /tmp; seq 1 10 >n; tac n | head -1; id -un; stat -f -c %T ."
    result = sandbox.run(["sh", "-euc", script], capture_output=True)
    assert result.stdout is not None
    return [result.status, result.stdout.decode().split(), result.stderr]


def test_programs_through_the_api(world: World) -> None:
    for tier in (1, 2):
        assert world.call(through_the_api, tier) == [0, ["10", "agent", "tmpfs"], b""]
