"""A unit's drop-in for systemd: read back as systemd reads it, it runs what it should, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmoda.supervisor.confining.sandboxing_directives import RULES
from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.systemd import drop_ins as systemd_drop_ins
from osmoda.supervisor.units import specifiers, values, words
from osmoda.supervisor.units.unit import Unit
from tests.unit_hosts import HOST, service

PROGRAM = "/opt/with space/100%/osmoda-watch"

ALL = """[Unit]
Description=All of it
[Service]
Type=notify
NotifyAccess=all
ExecCondition=/bin/true
ExecStartPre=-/bin/sh -c 'echo "$HOME" %%'
ExecStartPre=/bin/true
ExecStart=/usr/bin/agent --name %n ;
ExecStartPost=:/bin/echo $HOME
ExecReload=/bin/kill -HUP $MAINPID
ExecStop=/bin/true
ExecStopPost=/bin/true
Environment=LD_PRELOAD=/tmp/evil.so
EnvironmentFile=/srv/agent/.env
PassEnvironment=LANG
WorkingDirectory=/srv/agent
StandardOutput=append:/srv/agent/log
KillMode=control-group
NoNewPrivileges=yes
CapabilityBoundingSet=CAP_CHOWN
ProtectSystem=strict
ReadWritePaths=/srv/agent
SystemCallFilter=@system-service
MemoryMax=64M
"""


def read_back(unit_text: str, name: str = "agent.service") -> tuple[Unit, Unit]:
    """A unit, and the same with its drop-in."""
    unit = service(unit_text, name)
    return unit, service(unit_text, name, systemd_drop_ins.drop_in(unit, PROGRAM))


def test_each_command_leads_into_the_sandbox():
    unit, confined = read_back(ALL)
    for kind in systemd_drop_ins.KINDS:
        before = systemd_drop_ins.commands(unit, kind)
        after = systemd_drop_ins.commands(confined, kind)
        assert before
        mark = systemd_drop_ins.fingerprint(unit)
        expected = [(PROGRAM, "exec", kind, str(number), mark, unit.name) for number in range(len(before))]
        assert [one.words for one in after] == expected
        assert [one.ignore_failure for one in after] == [one.ignore_failure for one in before]
        assert not any(one.expand_variables for one in after)


def test_nothing_that_the_agent_could_have_written_decides_outside():
    _, confined = read_back(ALL)
    assert confined.environment == {}
    assert (confined.environment_files, confined.pass_environment, confined.unset_environment) == ((), (), ())
    assert confined.working_directory == ""
    assert confined.standard_output.kind == "journal"


def test_systemd_sees_when_it_is_up_and_ends_it_by_the_wrapper():
    for kind, notifying in (("simple", "notify"), ("exec", "notify"), ("notify", "notify"), ("oneshot", "oneshot")):
        _, confined = read_back(f"[Service]\nType={kind}\nExecStart=/bin/true\n")
        assert (confined.type, confined.kill_mode) == (notifying, "mixed")
        assert confined.notify_access == "main"
    assert read_back(ALL)[1].notify_access == "all"


def test_what_the_plan_carries_out_is_taken_back():
    _, confined = read_back(ALL)
    last = {directive.name: directive.value for directive in confined.confinement}
    assert last == {
        "NoNewPrivileges": "no",
        "CapabilityBoundingSet": "~",
        "ProtectSystem": "no",
        "ReadWritePaths": "",
        "SystemCallFilter": "",
        "MemoryMax": "infinity",
        "Delegate": "yes",
    }


# Directives that are left to systemd, where they are not refused: their harmless values, and what processes inherit.
LEFT = {
    *("Nice", "OOMScoreAdjust", "UMask", "KeyringMode", "Personality", "IgnoreSIGPIPE", "Slice", "Delegate"),
    *("StateDirectory", "CacheDirectory", "LogsDirectory", "ConfigurationDirectory"),
    *("StateDirectoryMode", "CacheDirectoryMode", "LogsDirectoryMode", "ConfigurationDirectoryMode"),
    *("CPUAccounting", "MemoryAccounting", "TasksAccounting", "IPAccounting"),
}


def test_it_was_decided_what_becomes_of_every_directive():
    """One that is not always refused is either taken back, or left to systemd on purpose."""
    refused = {name for name, rule in RULES.items() if getattr(rule, "__qualname__", "").startswith("refused.")}
    assert {*RULES} - refused - {*systemd_drop_ins.TAKEN_BACK} - LEFT == set()
    assert {*systemd_drop_ins.TAKEN_BACK} & LEFT == set()


def test_a_drop_in_is_of_the_commands_that_it_was_written_for():
    unit = service(ALL)
    mark = systemd_drop_ins.fingerprint(unit)
    assert mark == systemd_drop_ins.fingerprint(service(ALL.replace("Description=All of it", "Description=More")))
    assert mark == systemd_drop_ins.fingerprint(service(ALL.replace("LD_PRELOAD=/tmp/evil.so", "A=1")))
    for before, after in (
        ("/usr/bin/agent --name", "/usr/bin/agent --other"),
        ("ExecStop=/bin/true\n", ""),
        ("ExecStartPre=-/bin/sh", "ExecStartPre=/bin/sh"),
        ("NoNewPrivileges=yes\n", "NoNewPrivileges=yes\nPrivateNetwork=yes\n"),
        ("NotifyAccess=all", "NotifyAccess=main"),
    ):
        assert before in ALL
        assert systemd_drop_ins.fingerprint(service(ALL.replace(before, after))) != mark


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[Service]\nExecStart=@/bin/sh name\n", 'the prefix "@" is not possible here'),
        ("[Service]\nExecStart=/bin/sh\n[X-Osmoda]\nRestartGroup=all\n", "RestartGroup= needs osmoda's own engine"),
    ],
)
def test_what_cannot_mean_the_same_is_refused_with_its_line(text, said):
    with pytest.raises(UnitError, match=said) as error:
        systemd_drop_ins.drop_in(service(text), PROGRAM)
    assert error.value.origin is not None


WORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)


@settings(max_examples=300, deadline=None)
@given(st.lists(WORD, min_size=1, max_size=5))
def test_any_word_comes_out_as_it_was(given_words):
    line = " ".join(map(systemd_drop_ins.escaped, given_words))
    assert "\n" not in line
    read = [specifiers.resolve(word, values.unit_name("agent.service"), HOST) for word in words.split(line)]
    assert read == given_words


NAMES = st.from_regex(r"[A-Za-z0-9:_.\\-]{1,20}(@[A-Za-z0-9:_.\\-]{1,10})?\.service", fullmatch=True)


@settings(max_examples=100, deadline=None)
@given(NAMES, WORD)
def test_any_unit_and_any_place_of_the_command(name, folder):
    try:
        unit = dataclasses.replace(service("[Service]\nExecStart=/bin/true\n"), name=values.unit_name(name).full)
    except ValueError:
        return  # no name that a unit can have
    program = "/" + folder.replace("/", "") + "/osmoda-watch"
    text = systemd_drop_ins.drop_in(unit, program)
    (line,) = [line for line in text.split("\n") if line.startswith(("ExecStart=:", 'ExecStart=":'))]
    read = [specifiers.resolve(word, values.unit_name(name), HOST) for word in words.split(line.partition("=")[2])]
    assert read == [":" + program, "exec", "start", "0", systemd_drop_ins.fingerprint(unit), unit.name]
