"""`learn` writes a profile under which the same command passes, and nothing in it is there without need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.internet import Internet
from tests.sandboxed import PYTHON
from tests.worlds import World

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
CERTIFICATES = {
    "REQUESTS_CA_BUNDLE": BUNDLE,
    "SSL_CERT_FILE": BUNDLE,
    "NODE_EXTRA_CA_CERTS": BUNDLE,
    "PIP_CERT": BUNDLE,
}
WIDE = {"/", "/home", "/root", "/tmp", "/etc", "/var", "/opt", "/srv", "/usr", "*", "*:*", "*.*", "@system-service"}
INTERPRETER = os.path.realpath(sys.executable)

REQUESTS = """
import sys
sys.path.append(sys.argv[2])
import requests
sys.stdout.write(requests.get(sys.argv[1], timeout=20).text)
"""
FETCH = """
fetch(process.argv[2]).then(answer => answer.text())
    .then(text => require("fs").writeFileSync("page", text), error => { console.error(error); process.exit(1) })
"""
PIP = """
import runpy, sys
sys.path.append(sys.argv.pop(1))
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__")
"""
SQLITE = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as database:
    database.execute("create table if not exists numbers (n)")
    database.execute("insert into numbers values (1)")
    print(*database.execute("select sum(n) from numbers").fetchone())
"""


@dataclass(frozen=True)
class Learner:
    """Somebody who learns in the folder `work`, with `variables` in each run."""

    world: World
    work: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def learn(self, *command: str, options: Sequence[str] = (), **more: Any) -> Learned:
        words = ["learn", "--json", *options, *self._variables(), "--", *command]
        done = self.world.osmoda(*words, cwd=self.work, timeout=120, **more)
        assert done.stdout, done.stderr
        return Learned(self, command, json.loads(done.stdout), done.stderr)

    def run(self, profile: str, command: Sequence[str]) -> int:
        """The exit code of `command` under the text of a profile."""
        path = self.world.tmp / "profile.toml"
        path.write_text(profile)
        self.world.own(path)
        words = ["run", "--profile", str(path), *self._variables(), "--", *command]
        return int(self.world.osmoda(*words, cwd=self.work).returncode)

    def _variables(self) -> list[str]:
        return [word for name, value in self.variables.items() for word in ("--env", f"{name}={value}")]

    def write(self, name: str, text: str) -> Path:
        path = self.work / name
        path.write_text(text)
        self.world.own(path)
        return path


@dataclass(frozen=True)
class Learned:
    learner: Learner
    command: Sequence[str]
    report: Mapping[str, Any]
    errors: str

    @property
    def profile(self) -> dict[str, Any]:
        return tomllib.loads(self.report["profile"])

    def items(self, *key: str) -> list[Any]:
        found: Any = self.profile
        for name in key:
            found = found.get(name, {})
        return list(found)

    def passes(self, *, rounds: int = 1) -> None:
        """The profile lets the command pass, said so, and holds nothing wide."""
        assert self.report["passed"], (self.report, self.errors)
        assert self.report["status"] == 0, self.errors
        assert len(self.report["checks"]) == rounds, self.report["checks"]
        values = {
            str(value)
            for key in (("filesystem", "read"), ("filesystem", "write"), ("network", "allow"))
            for value in self.items(*key)
        } | {*self.items("process", "syscalls")}
        assert not values & WIDE, values
        for line in self.report["profile"].splitlines():
            assert (
                line.strip() in ("", "]")
                or " # " in line
                or "[" in line
                or line.startswith(("#", "schema", "tier", "desc"))
            )

    def without(self, value: str) -> str:
        """The profile without the line of `value`."""
        lines = self.report["profile"].splitlines(keepends=True)
        kept = [line for line in lines if not line.strip().startswith(json.dumps(value))]
        assert len(kept) == len(lines) - 1, (value, self.report["profile"])
        return "".join(kept)

    def needs(self, value: str) -> None:
        """Without that line the command fails."""
        assert self.learner.run(self.without(value), self.command) != 0, value

    def not_granted(self) -> dict[str, str]:
        return {one["what"]: one["why"] for one in self.report["not_granted"]}


as_user = pytest.mark.parametrize("world", ["user"], indirect=True)  # nothing in it depends on who learns


@pytest.fixture
def learner(world: World) -> Learner:
    work = world.tmp / "work"
    work.mkdir()
    world.own(work)
    return Learner(world, work)


@pytest.fixture
def connected(learner: Learner, online: World) -> Learner:
    return Learner(online, learner.work, CERTIFICATES)


# Programs


def test_a_file_is_one_line(learner: Learner) -> None:
    place = learner.world.tmp / "notes"
    place.mkdir()
    (place / "note").write_text("text\n")
    (place / "other").write_text("other\n")
    learner.world.own(place)
    learned = learner.learn("cat", str(place / "note"))
    learned.passes()
    assert learned.items("filesystem", "read") == [str(place / "note")]
    assert "workspace" not in learned.profile["filesystem"]
    assert learner.run(learned.report["profile"], learned.command) == 0
    learned.needs(str(place / "note"))


def test_sqlite(learner: Learner) -> None:
    place = learner.world.tmp / "database"
    place.mkdir()
    learner.world.own(place)
    script = learner.write("count.py", SQLITE)
    learned = learner.learn(PYTHON, str(script), str(place / "numbers.db"))
    learned.passes()
    assert learned.items("filesystem", "write") == [str(place)]
    # The observed run has changed nothing, the one under the profile what it may.
    assert learner.world.run(["sqlite3", place / "numbers.db", "select sum(n) from numbers"]).stdout == "1\n"
    learned.needs(str(place))
    learned.needs("@file-system")


def test_a_page_with_requests(connected: Learner, web: Internet) -> None:
    script = connected.write("page.py", REQUESTS)
    packages = sysconfig.get_path("purelib")
    learned = connected.learn(INTERPRETER, str(script), "https://www.example.test/small", packages)
    learned.passes()
    assert learned.items("network", "allow") == ["www.example.test"]
    assert packages in learned.items("filesystem", "read")
    learned.needs(packages)
    learned.needs("www.example.test")


def test_git_clone(connected: Learner, web: Internet) -> None:
    learned = connected.learn("git", "clone", "--quiet", "https://git.example.test/dumb/project.git", "copy")
    learned.passes()
    assert learned.items("network", "allow") == ["git.example.test"]
    assert learned.profile["filesystem"] == {"workspace": "overlay"}
    assert not (connected.work / "copy").exists()
    learned.needs("git.example.test")


def test_node(connected: Learner, web: Internet) -> None:
    connected.write("page.js", FETCH)
    learned = connected.learn("node", "page.js", "https://www.example.test/small")
    learned.passes()
    assert learned.items("network", "allow") == ["www.example.test"]
    assert learned.profile["filesystem"] == {"workspace": "overlay"}
    learned.needs("www.example.test")


def test_pip_with_a_compiler(connected: Learner, package_index: str) -> None:
    packages = sysconfig.get_path("purelib")
    words = ["install", "--quiet", "--no-cache-dir", "--disable-pip-version-check", "--target", "packages"]
    words += ["--no-build-isolation", "--no-compile"]
    command = [INTERPRETER, "-c", PIP, packages, *words, "--index-url", package_index, "--retries", "0", "compiled"]
    learned = connected.learn(*command)
    learned.passes()
    assert learned.items("network", "allow") == ["pypi.example.test"]
    learned.needs(os.path.realpath(sysconfig.get_path("stdlib")))
    # It looks at every file of /etc for the name of the distribution.
    assert not {"/etc/fstab", "/etc/passwd-", "/etc/pam.conf"} & {*learned.items("filesystem", "read")}
    learned.needs("pypi.example.test")


def test_names_that_a_list_led_to_are_not_granted(learner: Learner) -> None:
    look = "import os; print(len([name for name in os.listdir('/etc') if os.path.isfile('/etc/' + name)]))"
    learned = learner.learn(PYTHON, "-c", look + "; open('/etc/debian_version').read()")
    learned.passes()
    assert learned.items("filesystem", "read") == ["/etc/debian_version"]


def test_nor_is_what_links_of_a_list_lead_to(learner: Learner) -> None:
    places = {name: learner.world.tmp / name for name in ("listed", "elsewhere")}
    for place in places.values():
        (place / "inner").mkdir(parents=True)
    (places["elsewhere"] / "file").write_text("text\n")
    (places["elsewhere"] / "named").write_text("text\n")
    (places["elsewhere"] / "again").symlink_to(places["elsewhere"] / "inner")
    (places["listed"] / "to-file").symlink_to(places["elsewhere"] / "file")
    (places["listed"] / "to-folder").symlink_to(places["elsewhere"] / "again")
    (places["listed"] / "to-named").symlink_to(places["elsewhere"] / "named")
    look = f"import os; os.chdir('/'); place = {str(places['listed'])!r}; "
    look += "print([os.path.isfile(f'{place}/{name}') for name in os.listdir(place)])"
    learned = learner.learn(PYTHON, "-c", look)
    learned.passes()
    assert learned.items("filesystem", "read") == [str(places["listed"])]
    learned = learner.learn(PYTHON, "-c", look + "; open(f'{place}/to-named').read()")
    learned.passes()
    assert sorted(learned.items("filesystem", "read")) == [str(places["elsewhere"] / "named"), str(places["listed"])]


# Programs that are not what they seem


GREEDY = r"""
import os, socket, sys
for path in sys.argv[1:]:
    try:
        open(path).read()
        print("read", path)
    except OSError:
        pass
for host in ("169.254.169.254", "private.example.test", "203.0.113.99"):
    try:
        with socket.create_connection((host, 80), 30) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\nHost: " + host.encode() + b"\r\n\r\n")
            answer = connection.recv(200)
        print("refused" if b"403" in answer or not answer else "reached", host)
    except OSError:
        pass
"""


def test_what_is_private_is_said_and_not_granted(connected: Learner, web: Internet) -> None:
    world = connected.world
    key = world.home / ".ssh" / "id_ed25519"
    key.parent.mkdir()
    key.write_text("key\n")
    others = world.tmp / "others"
    others.write_text("others\n")
    world.own(key.parent, key)
    if not world.is_root:
        os.chown(others, world.uid + 1, world.gid)
    else:
        others = Path("/etc/shadow")
    script = connected.write("greedy.py", GREEDY)
    # The positive control: outside, all of it is there.
    outside = world.run([PYTHON, script, key, *([] if world.is_root else [others])])
    assert f"read {key}" in outside.stdout
    assert "reached 169.254.169.254" in outside.stdout
    learned = connected.learn(PYTHON, str(script), str(key), str(others))
    assert f"read {key}" not in learned.errors
    assert "reached" not in learned.errors
    assert learned.report["passed"], learned.report
    assert not {str(key), str(others), str(world.home), str(world.tmp)} & {*learned.items("filesystem", "read")}
    assert learned.items("network", "allow") == []
    said = learned.not_granted()
    assert "keys" in said[f"reading {key}"]
    assert f"reading {others}" in said
    assert "metadata" in said["connecting to 169.254.169.254 port 80"]
    assert "203.0.113.99/32:80" in said["connecting to 203.0.113.99 port 80"]
    assert any("private.example.test" in what for what in said), said


def test_the_filter_decides_while_it_is_observed(learner: Learner) -> None:
    assert learner.world.run(["unshare", "--user", "true"]).returncode == 0
    learned = learner.learn("unshare", "--user", "true")
    assert learned.report["status"] != 0
    assert any(what.startswith("the system call unshare") for what in learned.not_granted()), learned.report
    assert "unshare" not in learned.items("process", "syscalls")


def test_a_command_that_is_not_there_or_does_not_end(learner: Learner) -> None:
    done = learner.world.osmoda("learn", "--", "/no/such/program", cwd=learner.work)
    assert (done.returncode, done.stdout) == (127, "")
    done = learner.world.osmoda("learn", "--timeout", "0.3", "--", "sleep", "60", cwd=learner.work)
    assert (done.returncode, done.stdout) == (124, "")


@as_user
def test_a_sandbox_that_is_killed_while_it_is_observed_does_not_hang(learner: Learner) -> None:
    world = learner.world
    marker = f"killed-{os.getpid()}"
    learning = world.popen(
        # No profile that is learned shows all of /opt: under one it ends at once.
        world.osmoda_argv("learn", "--", "sh", "-c", "[ -d /opt ] || exit 1; echo there >&2; sleep 60", marker),
        cwd=learner.work,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert learning.stderr is not None
    assert learning.stderr.readline() == "there\n"
    found = json.loads(world.osmoda("ps", "--json", check=True).stdout)
    (running,) = [one for one in found if marker in json.dumps(one)]  # others may run some, too
    world.osmoda("kill", running["identity"], check=True)
    _, errors = learning.communicate(timeout=60)
    assert learning.returncode == 1, errors
    assert "ended with exit code 137" in errors


def test_a_program_that_goes_elsewhere_the_second_time(learner: Learner) -> None:
    place = learner.world.tmp / "notes"
    place.mkdir()
    for name in ("first", "second", "observed"):
        (place / name).write_text(name)
    learner.world.own(place)
    # Under a profile, where the folder is not there to be written, it wants another file.
    script = f"""
        if [ -e {place}/observed ]; then cat {place}/first; else cat {place}/second; fi
    """
    learned = learner.learn("sh", "-c", script)
    assert learned.report["passed"], learned.report
    assert learner.run(learned.report["profile"], learned.command) == 0

    # One that never does the same is not said to pass.
    # While it is observed it has one filter more.
    filters = "exit $(sed -n 's/^Seccomp_filters:[[:space:]]*//p' /proc/self/status)"
    other = learner.learn("sh", "-c", filters)
    assert not other.report["passed"], other.report


@as_user
def test_odd_names(learner: Learner) -> None:
    place = learner.world.tmp / "odd"
    place.mkdir()
    quoted, broken, other = place / 'a "quoted" \\ # name', place / "two\nlines", os.fsencode(place) + b"/not-\xff-utf8"
    for path in (quoted, broken, other):
        with open(path, "w") as file:
            file.write("text")
    learner.world.own(place)
    learned = learner.learn("cat", str(quoted))
    learned.passes()
    assert learned.items("filesystem", "read") == [str(quoted)]
    for path, why in ((os.fsencode(broken), "control character"), (other, "UTF-8")):
        refused = learner.learn("cat", os.fsdecode(path))
        assert not refused.report["passed"]
        assert not any(str(place) in granted for granted in refused.items("filesystem", "read"))
        assert any(why in reason for reason in refused.not_granted().values()), refused.report


@as_user
def test_update_keeps_what_is_there(learner: Learner) -> None:
    one, two = learner.world.tmp / "one", learner.world.tmp / "two"
    for path in (one, two):
        path.write_text("text\n")
        learner.world.own(path)
    profile = learner.write(
        "agent.toml",
        f'schema = 1\ntier = 1  # ours\n\n[filesystem]\nread = ["{one}"]  # the first\n\n[process]\npids = 8 # few\n',
    )
    before = profile.read_text()
    done = learner.world.osmoda("learn", "--update", profile, "--", "cat", one, cwd=learner.work)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "text\n"
    assert profile.read_text() == before.replace("pids = 8 # few", "pids = 16 # 1 at once at most")
    done = learner.world.osmoda("learn", "--update", profile, "--", "cat", one, two, cwd=learner.work)
    assert done.returncode == 0, done.stderr
    after = tomllib.loads(profile.read_text())
    assert after["filesystem"]["read"] == [str(one), str(two)]
    assert "# ours" in profile.read_text()
    assert "# the first" in profile.read_text()
    assert "cat: reads" in profile.read_text()


@as_user
def test_values_of_variables_are_not_written(learner: Learner) -> None:
    words = ["--env", "SECRET=correct-horse", "--pass-env", "TOKEN"]
    learned = learner.learn(
        "sh", "-c", 'test "$SECRET$TOKEN" = correct-horsebattery', options=words, env={"TOKEN": "battery"}
    )
    learned.passes()
    assert "TOKEN" in learned.items("environment", "pass")
    assert "correct-horse" not in json.dumps(learned.report)
    assert "battery" not in json.dumps(learned.report)


@as_user
def test_what_the_input_says_is_read_in_every_run(learner: Learner) -> None:
    learned = learner.learn("grep", "-q", "needle", input="needle\n")
    learned.passes()
