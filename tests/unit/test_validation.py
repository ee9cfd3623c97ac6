from __future__ import annotations

import subprocess
import sys

import pytest

from osmoda.sandbox import schema, toml_source, validation
from osmoda.sandbox.errors import ProfileError


def errors_of(text: str) -> list[str]:
    with pytest.raises(ProfileError) as caught:
        validation.validate(toml_source.parse(text, "p"), schema.ProfileFile)
    return [str(error) for error in (caught.value, *caught.value.others)]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("tier = 1", "p:1:1: schema is missing; allowed: 1"),
        ("schema = 2", "p:1:1: schema is 2; allowed: 1"),
        ("schema = 1\ntier = 3", "p:2:1: tier is 3; allowed: 0 (unrestricted), 1 (sandboxed"),
        ("schema = 1\ntier = true", "p:2:1: tier is true; allowed: 0"),
        ('schema = 1\ntier = "1"', 'p:2:1: tier is "1"; allowed: 0'),
        ("schema = 1\n\n[netwrok]\nallow = []", 'p:3:2: netwrok is not a key of a profile; did you mean "network"?'),
        (
            "schema = 1\nnetwork.alow = []",
            'p:2:1: network.alow is not a key of a profile; did you mean "allow"? allowed here: allow, deny, serve,',
        ),
        ("schema = 1\nnetwork = 3", "p:2:1: network is 3; allowed: a table with the keys allow, deny, serve,"),
        ('schema = 1\n[network]\nallow = "x"', 'p:3:1: network.allow is "x"; allowed: a list of destinations'),
        ("schema = 1\n[network]\nallow = [\n  'x',\n  7,\n]", "p:5:3: network.allow[1] is 7; allowed: a list of dest"),
        ("schema = 1\n[network]\nserve = [1, 70000]", "p:3:13: network.serve[1] is 70000; allowed: a list of ports"),
        (
            'schema = 1\n[[network.allow]]\nhost = "x"\nports = [0]',
            "p:4:10: network.allow[0].ports[0] is 0; allowed: a list of ports from 1 to 65535",
        ),
        (
            'schema = 1\n[[network.allow]]\nhost = "x"\nhosts = 1',
            'p:4:1: network.allow[0].hosts is not a key of a profile; did you mean "host"?',
        ),
        ("schema = 1\n[[network.allow]]\nports = [1]", "p:2:3: network.allow[0].host is missing; allowed: a host name"),
        ("schema = 1\n[process]\nmemory = 1.5", "p:3:1: process.memory is 1.5; allowed: memory of the whole sandbox"),
        ("schema = 1\n[process]\ncpu = 0", "p:3:1: process.cpu is 0; allowed: a number of cores above 0"),
        ("schema = 1\n[process]\ncpu = nan", "p:3:1: process.cpu is nan; allowed: a number of cores above 0"),
        ("schema = 1\n[process]\ncpu = inf", "p:3:1: process.cpu is inf; allowed: a number of cores above 0"),
        ("schema = 1\n[process]\npids = 0", "p:3:1: process.pids is 0; allowed: a number of processes"),
        ("schema = 1\n[process.limits]\nopen_files = 1", "p:3:1: process.limits.open_files is 1; allowed: a number"),
        ("schema = 1\n[process.limits]\nnofile = 1", "p:3:1: process.limits.nofile is not a key of a profile"),
        ("schema = 1\n[environment]\nset = { A = 'x', B = 1 }", "p:3:18: environment.set.B is 1; allowed: a table of"),
        ("schema = 1\n[environment]\npassed = []", "p:3:1: environment.passed is not a key of a profile"),
        ("schema = 1\nfilesystem.workspace = 'rw'", 'p:2:1: filesystem.workspace is "rw"; allowed: "none" (an empty'),
        ("schema = 1\ndescription = 1979-05-27", "p:2:1: description is 1979-05-27; allowed: one line of text"),
        ("schema = 1\nceiling = {}", "p:2:1: ceiling is not a key of a profile; allowed here: degrade,"),
        ("schema = 1\n[network]\n'a` - at `$.process' = 1", "p:3:1: network.a` - at `$.process is not a key"),
        ("schema = 1\n'a` - at `$.network' = 1\n[network]", "p:2:1: a` - at `$.network is not a key"),
        ('schema = 1\n"\\u001b[2J" = 1', "p:2:1: \\x1b[2J is not a key"),
        ('schema = 1\n"a - at `$.b`" = 1', "p:2:1: a - at `$.b` is not a key of a profile; allowed here: degrade,"),
    ],
)
def test_what_is_wrong_is_said_with_its_place_and_what_is_allowed(text, error):
    assert errors_of(text)[0].startswith(error)


def test_all_errors_are_found_in_order():
    text = """\
schema = 1
tier = 9
[network]
serve = [0, 5, 70000]
allow = [1, "x", { host = 2 }]
[process]
pidz = 3
"""
    assert [error.split(";")[0] for error in errors_of(text)] == [
        "p:2:1: tier is 9",
        "p:4:10: network.serve[0] is 0",
        "p:4:16: network.serve[2] is 70000",
        "p:5:10: network.allow[0] is 1",
        "p:5:20: network.allow[2].host is 2",
        "p:7:1: process.pidz is not a key of a profile",
    ]


def test_a_file_full_of_errors_does_not_take_forever():
    assert len(errors_of("schema = 1\nnetwork.serve = [" + "0," * 5000 + "]")) == 20


def test_control_characters_of_a_value_do_not_reach_the_terminal():
    (error,) = errors_of('schema = 1\ntier = "\\u001b[2J\\u202e"')
    assert error.isprintable()


THREADS = """
import sys, threading
from osmoda.sandbox.profile import Profile

sys.setswitchinterval(1e-6)
together = threading.Barrier(8)
loaded = []

def load():
    together.wait(60)
    loaded.append(Profile.default(1).tier)

threads = [threading.Thread(target=load) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sum(loaded))
"""


def test_threads_may_load_their_first_profiles_at_once():
    """Without a lock msgspec brings the interpreter down, nineteen times out of twenty."""
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr
