"""`osmoda-egress`: its grammar, what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import time

import pytest
import shtab

from osmoda.egress.control_client import ControlError, Served
from osmoda.host import paths
from osmoda.sandbox import egress_command, egress_edit, egress_force, egress_grammar, egress_words, grammar, tiers
from osmoda.sandbox.request import UsageError
from tests.worlds import World

VERBS = sorted(
    [
        *(
            "allow",
            "deny",
            "remove",
            "list",
            "test",
            "reload",
            "pending",
            "approve",
            "refuse",
            "log",
            "watch",
            "status",
        ),
        *("metrics", "serve", "completion"),
    ]
)
PROFILE = """\
schema = 1
tier = 1
[network]
allow = [
  "a.example",
  { host = "b.example", methods = ["GET"], paths = ["/v1/*"], secret = "KEY", max_bytes = "1G", max_requests = 9 },
]
deny = ["evil.example"]
serve = [8082]
connect = ["host:5432"]
ask = true
"""


@pytest.fixture(autouse=True)
def own_directories(monkeypatch, no_leftovers):
    monkeypatch.setattr(paths.posix, "environ", dict(os.environb))


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text(PROFILE)
    return path


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["osmoda-egress", *map(str, words)])
        code = egress_command.main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, printed.err

    return run


# The grammar


def examples(verb):
    text = egress_grammar.parser(verb).format_help()
    after = text.partition("examples:\n")[2]
    return [shlex.split(line.partition(">")[0]) for line in after.splitlines() if line.startswith("  osmoda-egress ")]


def test_these_are_the_verbs():
    text = egress_grammar.parser().format_help()
    assert sorted(re.findall(r"^    ([a-z]+)(?:  |$)", text, re.MULTILINE)) == VERBS
    assert sorted([*egress_command._VERBS, "completion"]) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_has_examples_and_each_of_them_parses(verb):
    found = examples(verb)
    assert found
    for program, first, *rest in found:
        assert (program, first) == ("osmoda-egress", verb)
        assert egress_grammar.parser().parse_args([first, *rest]).verb == verb


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"completion", "serve"}))
def test_every_verb_has_json(verb):
    assert "--json" in egress_grammar.parser(verb).format_help()


@pytest.mark.parametrize("shell", grammar.SHELLS)
def test_completion_knows_every_verb(shell):
    script = shtab.complete(egress_grammar.parser(), shell=shell)
    for verb in VERBS:
        assert verb in script
    assert "max-requests" in script


@pytest.mark.parametrize(
    "arguments",
    [
        ["allow"],
        ["allow", "agent.toml"],
        ["allow", "agent.toml", "a.example", "--port", "0"],
        ["allow", "agent.toml", "a.example", "--port", "70000"],
        ["allow", "agent.toml", "a.example", "--max-requests", "-1"],
        ["approve", "1-1", "--run", "--save"],
        ["log", "-n", "-5"],
        ["serve", "--workers", "0"],
        ["metrics", "--nope"],
    ],
)
def test_what_does_not_parse_is_one_sentence_and_no_exit(arguments):
    with pytest.raises(UsageError, match=rf"see osmoda-egress {arguments[0]} --help$") as caught:
        egress_grammar.parser().parse_args(arguments)
    assert "\n" not in str(caught.value)


def test_a_verb_that_is_none_is_answered_with_the_one_that_may_be_meant(command):
    code, _, errors = command("alow", "agent.toml", "a.example")
    assert code == 125
    assert errors == "osmoda-egress: there is no verb alow; did you mean allow? see osmoda-egress --help\n"
    assert command()[0] == 125


# Edits


def test_an_edit_says_what_it_did_and_json_has_it(command, profile):
    code, out, _ = command("allow", profile, "c.example", "--port", "8443", "--port", "443")
    assert (code, out) == (0, f"{profile}: c.example:443,8443 added to network.allow\n")
    code, out, _ = command("allow", profile, "c.example:443", "--json")
    made = json.loads(out)
    assert (code, made["edit"]["changed"], made["reached"], made["silent"]) == (0, [], [], [])
    assert "covered" in made["edit"]["kept"][0]
    code, out, _ = command("deny", profile, "c.example")
    assert out == f"{profile}: c.example added to network.deny\n"
    code, out, _ = command("remove", profile, "c.example")
    assert out.count("removed from network.") == 2
    assert profile.read_text() == PROFILE


def test_every_option_of_a_rule_is_written(command, profile):
    options = "--method GET --path /v1/* --secret K --max-body 1M --max-bytes 2G --max-requests 5 --address 10.0.0.0/8"
    assert command("allow", profile, "c.example", *options.split())[0] == 0
    line = next(line for line in profile.read_text().splitlines() if "c.example" in line)
    assert line == (
        '  { host = "c.example", methods = ["GET"], paths = ["/v1/*"], secret = "K", max_body = "1M", '
        'max_bytes = "2G", max_requests = 5, addresses = ["10.0.0.0/8"] },'
    )
    assert command("allow", profile, "d.example", "--ech")[0] == 0
    assert '{ host = "d.example", ech = true },' in profile.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("allow", "P", "a..b"), "is no rule"),
        (("allow", "P", "c.example", "--method", "get"), "capitals"),
        (("remove", "P", "c.example"), "has a rule c.example"),
        (("allow", "/nowhere/agent.toml", "a.example"), "No such file"),
        (("allow", "tier2", "a.example"), "no profile file"),
        (("list", "nothing-of-this-name"), "no profile has this name"),
        (("test", "P"), "as in"),
        (("test", "P", "a b"), "names no host"),
        (("test", "--last", "a.example"), "no last run"),
        (("watch", "tier1"), "no profile file"),
        (("approve", "1-1"), "no question"),
        (("refuse", "1-1"), "no question"),
    ],
)
def test_a_users_mistake_is_one_sentence(command, profile, words, said):
    code, out, errors = command(*[profile if word == "P" else word for word in words])
    assert code == 125
    assert out == ""
    assert errors.startswith("osmoda-egress: ")
    assert said in errors
    assert errors.count("\n") == 1
    assert profile.read_text() == PROFILE


def test_every_error_of_a_profile_is_told(command, profile):
    profile.write_text('schema = 1\n[network]\nallow = ["a..b", "c d"]\n')
    code, _, errors = command("list", profile)
    assert code == 125
    assert [line.split(": ")[1] for line in errors.splitlines()] == [f"{profile}:3:10", f"{profile}:3:18"]


# Questions about a profile


def test_list_has_each_rule_with_its_line_and_why_requests_are_looked_at(command, profile):
    found = json.loads(command("list", profile, "--json")[1])
    more = (
        "b.example:443 with methods GET and paths /v1/* and secret KEY and at most 1073741824 bytes in all and "
        "at most 9 requests in all"
    )
    assert [one["words"] for one in found] == [
        "allow a.example:443",
        f"allow {more} (each request is looked at, for its methods and paths and secret)",
        "deny evil.example:*",
        "connect host:5432",
        "serve port 8082",
        "ask about any other name",
    ]
    assert [one["origin"] for one in found] == [f"{profile}:{line}" for line in (5, 6, 8, 10, 9, 11)]
    assert found[1]["inspected"] == ["methods", "paths", "secret"]
    assert (found[1]["max_bytes"], found[1]["max_requests"], found[1]["secret"]) == (1 << 30, 9, "KEY")
    code, out, _ = command("list", profile)
    assert code == 0
    assert "allow a.example:443" in out
    assert "\x1b" not in out


def test_what_is_listed_can_be_removed_as_it_is_listed(command, profile):
    for one in json.loads(command("list", profile, "--json")[1])[:3]:
        words = one["words"].partition(" (")[0].partition(" ")[2]
        assert command("remove", profile, words)[0] == 0
    assert command("list", profile, "--json")[1].count('"kind"') == 3


def test_an_empty_list_is_said(command, profile):
    profile.write_text("schema = 1\n")
    assert command("list", profile) == (0, "", "nothing can be reached\n")


def test_test_answers_with_its_exit_code(command, profile):
    code, out, _ = command("test", profile, "https://a.example/")
    assert (code, out) == (0, f"https://a.example/ is allowed ({profile}:5); passed on unopened\n")
    code, out, _ = command("test", profile, "https://b.example/v2", "--method", "GET", "--json")
    answer = json.loads(out)
    assert (code, answer["allowed"], answer["layer"], answer["origin"]) == (1, False, "egress", f"{profile}:6")


def test_test_asks_about_the_last_run(world: World):
    profile = world.tmp / "agent.toml"
    profile.write_text('schema = 1\n[network]\nallow = ["a.example"]\n')
    world.own(profile)
    world.osmoda("run", "--profile", profile, "--allow", "b.example", "--", "true", check=True)
    for name, code in (("a.example", 0), ("b.example", 0), ("c.example", 1)):
        answer = world.egress("test", "--last", name)
        assert answer.returncode == code, answer.stderr
        assert "for the last run, true" in answer.stderr


# What runs


class Gateways:
    """Control sockets of gateways; `records` are those to be watched."""

    def __init__(self, *sessions, records=()):
        self.served = list(sessions)
        self.records = records
        self.silent = []
        self.decided = []

    def sessions(self):
        return self.served

    def watch(self, sandboxes=None):
        return iter(self.records)

    def pending(self):
        until = time.time() + 30
        question = {"id": "7-1", "sandbox": "1-1", "agent": "", "profile": "agent.toml", "name": "x.example"}
        return [question | {"port": 443, "asked": until - 60, "until": until, "connections": 2}]

    def approve(self, question, how):
        self.decided.append((question, how))
        return self.served[0], "x.example", 443

    def refuse(self, question):
        return self.approve(question, "refuse")

    def policy(self, identity, blob, pid):
        return 1


def served(file, identity="1-1"):
    from osmoda.sandbox.opening import token_of_file

    files = (*((str(file),) if file else ()), os.path.join(tiers.SHIPPED, "tier1.toml"))
    token = token_of_file(str(file)) if file else b""
    return Served(identity, "agent", 1, "agent.toml", files, token, 7, 0.0, 3, "d", True, (8082,), 1)


@pytest.fixture
def gateways(monkeypatch, profile):
    found = Gateways(served(profile))
    for module in (egress_command, egress_force):
        monkeypatch.setattr(module, "Client", lambda: found)
    return found


def test_an_edit_tells_of_what_runs(command, profile, gateways):
    code, out, _ = command("allow", profile, "c.example")
    assert code == 0
    assert out.splitlines()[1] == "in force in sandbox 1-1 (agent); 1 open connection closed"
    gateways.silent = [9]
    code, out, _ = command("allow", profile, "d.example")
    assert code == 1
    assert "process 9, a gateway, does not answer" in out
    gateways.silent = []
    gateways.served.append(served(profile, "2-1"))
    assert "in force in 2 running sandboxes; 2 open connections closed" in command("reload", profile)[1]


def test_status_and_pending_are_tables_and_json_without_tokens(command, gateways):
    code, out, _ = command("status")
    assert code == 0
    assert re.search(r"1-1 +agent +1 +agent\.toml +7 +3 +1 +8082", out)
    assert json.loads(command("status", "--json")[1])[0]["token"] is None
    code, out, _ = command("pending")
    assert re.search(r"7-1 +1-1 +x\.example:443 +2, refused in (29|30) s +agent\.toml", out)
    gateways.served.clear()
    assert command("status")[2] == "no running sandbox has a way out\n"


@pytest.mark.parametrize(
    ("option", "how", "words"),
    [([], "once", "this once"), (["--once"], "once", "this once"), (["--run"], "run", "for this run")],
)
def test_a_question_is_approved(command, gateways, option, how, words):
    assert command("approve", "7-1", *option) == (0, f"x.example:443 {words} (1-1)\n", "")
    assert gateways.decided == [("7-1", how)]


def test_a_question_is_refused(command, gateways):
    assert command("refuse", "7-1") == (0, "x.example:443 refused (1-1)\n", "")
    assert gateways.decided == [("7-1", "refuse")]


def test_an_approval_is_written_into_the_profile(command, profile, gateways):
    code, out, _ = command("approve", "7-1", "--save")
    assert code == 0
    assert "x.example:443 added to network.allow" in out
    assert gateways.decided == [("7-1", "run")]
    assert '  "x.example:443",\n]' in profile.read_text()


def test_an_approval_that_cannot_be_written_is_for_this_run_and_that_is_said(command, profile, gateways):
    profile.write_text("nonsense = 1\n")
    code, _, errors = command("approve", "7-1", "--save")
    assert code == 125
    assert errors.startswith("osmoda-egress: x.example:443 is approved for this run only, and not written: ")
    gateways.served = [served(None)]
    assert "is no profile file" in command("approve", "7-1", "--save")[2]


def test_a_gateway_that_says_no_is_one_sentence(command, gateways):
    def refused(*_):
        raise ControlError("process 9 does not answer")

    gateways.approve = refused
    assert command("approve", "7-1") == (125, "", "osmoda-egress: process 9 does not answer\n")


# Records


RECORD = {
    "time": 1000.0, "sandbox": "1-1", "agent": "agent", "event": "request", "name": "b.example", "address": "192.0.2.1",
    "port": 443, "verdict": "deny", "action": "refused", "reason": "no \x1b[31mpath", "rule": "/p/agent.toml:6",
    "bytes_up": 10, "bytes_down": 20, "duration": 0.5, "method": "GET", "path": "/v2", "status": 403,
}  # fmt: skip


def test_a_record_is_one_line_and_cannot_act_on_a_terminal():
    plain = egress_words.of_record(RECORD, colour=False)
    assert re.match(
        r"\d\d:\d\d:\d\d  agent  refused   b\.example:443 \(192\.0\.2\.1\)  GET /v2 403  10 up, 20 down", plain
    )
    assert plain.endswith("  [/p/agent.toml:6]")
    assert "\x1b" not in plain
    coloured = egress_words.of_record(RECORD, colour=True)
    assert coloured.count("\x1b") == 6
    assert "\x1b[31mpath" not in coloured
    assert "\n" not in egress_words.of_record({"reason": "a\nb"}, colour=False)


@pytest.fixture
def log(no_leftovers):
    folder = paths.own_directory("state", "egress")
    records = [RECORD | {"sandbox": f"{number}-1", "verdict": "deny" if number % 2 else "allow"} for number in range(9)]
    with open(f"{folder}/connections.jsonl", "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], range(9)),
        (["-n", "2"], [7, 8]),
        (["-n", "0"], range(9)),
        (["--denied"], [1, 3, 5, 7]),
        (["--denied", "-n", "1"], [7]),
        (["--sandbox", "3-1"], [3]),
        (["--sandbox", "none"], []),
    ],
)
def test_log_prints_the_records_that_are_asked_for(command, log, words, found):
    code, out, _ = command("log", "--json", *words)
    assert code == 0
    assert [json.loads(line)["sandbox"] for line in out.splitlines()] == [f"{number}-1" for number in found]


def test_a_log_that_is_not_there_has_no_records(command):
    assert command("log") == (0, "", "")


def test_watch_prints_the_records_of_what_runs_under_the_profile(command, profile, gateways, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(PROFILE)
    gateways.records = [RECORD, RECORD | {"sandbox": "2-1"}, RECORD | {"sandbox": "3-1"}, {"event": "fault"}]
    gateways.served += [served(other, "2-1"), served(profile, "3-1")]
    assert [json.loads(line)["sandbox"] for line in command("watch", profile, "--json")[1].splitlines()] == [
        "1-1",
        "3-1",
    ]
    assert len(command("watch", "--json")[1].splitlines()) == 4


def test_an_early_end_of_the_reader_is_no_error(world: World):
    profile = world.tmp / "agent.toml"
    profile.write_text(PROFILE)
    world.own(profile)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        listed = world.egress("list", profile, stdout=writer)
    finally:
        os.close(writer)
    assert (listed.returncode, listed.stderr) == (141, "")


def test_metrics_are_what_prometheus_reads(command):
    code, out, _ = command("metrics")
    assert code == 0
    assert "# TYPE osmoda_egress_" in out
    assert isinstance(json.loads(command("metrics", "--json")[1]), dict)


# The words of an edit


def test_an_edit_that_did_not_reach_all_says_whom():
    made = egress_edit.Edited(
        "/p/agent.toml",
        egress_edit.Edit("", ("a added",), ("b stays",)),
        (egress_force.InForce("1-1", "", 0), egress_force.InForce("2-1", "x", 0, "it is busy")),
        (9, 10),
        ("later",),
    )
    assert list(egress_words.of_edit(made)) == [
        "/p/agent.toml: a added",
        "/p/agent.toml: b stays",
        "later",
        "in force in sandbox 1-1; no open connections closed",
        "sandbox 2-1 (x) does not have it: it is busy",
        "process 9, 10, a gateway, does not answer: its sandboxes may not have it",
    ]
    assert not made.everywhere
