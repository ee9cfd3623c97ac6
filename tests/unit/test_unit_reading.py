"""Units as their files describe them: every directive that is read, and what is refused with its line."""

from __future__ import annotations

import math
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.units import directives
from osmoda.supervisor.units.unit import Directive, EnvironmentFile, Exec, Origin, Output
from tests.unit_hosts import HOST, service

# As they came with the project.
RESEARCH = """# Agent 1: Research agent — scrapes and summarizes data
[Unit]
Description=Research Agent
After=network-online.target agentd.service

[Service]
Type=simple
WorkingDirectory=/opt/agents/research
EnvironmentFile=/opt/agents/research/.env
ExecStart=/opt/agents/research/.venv/bin/python main.py
Restart=always
RestartSec=5

[Install]
WantedBy=multi-user.target
"""
WRITER = """# Agent 2: Writer agent — generates content from research
[Unit]
Description=Writer Agent
After=network-online.target agentd.service

[Service]
Type=simple
WorkingDirectory=/opt/agents/writer
EnvironmentFile=/opt/agents/writer/.env
ExecStart=/opt/agents/writer/.venv/bin/python main.py
Restart=always
RestartSec=5

[Install]
WantedBy=multi-user.target
"""


def one(line, section="Service", name="agent.service", *, more="ExecStart=/bin/true"):
    """A service with one more line."""
    return service(f"[{section}]\n{line}\n[Service]\n{more}\n", name)


@pytest.mark.parametrize(("text", "title"), [(RESEARCH, "Research Agent"), (WRITER, "Writer Agent")])
def test_the_two_agents_load_as_they_stand(text, title):
    unit = service(text, "an-agent.service")
    assert unit.description == title
    assert unit.dependencies.after == ("agentd.service", "network-online.target")
    assert (unit.type, unit.restart, unit.restart_sec) == ("simple", "always", 5.0)
    assert unit.exec_start[0].words[1:] == ("main.py",)
    assert unit.exec_start[0].origin == Origin("/units/an-agent.service", 10)
    assert unit.environment_files[0].path == f"{unit.working_directory}/.env"
    assert unit.install.wanted_by == ("multi-user.target",)
    assert unit.confinement == ()
    assert unit.osmoda.tier is None
    assert unit.origins["Service.RestartSec"].line == 12


def test_what_nobody_wrote_is_systemd_s_default():
    unit = service("[Service]\nExecStart=/bin/true\n")
    assert (unit.type, unit.restart, unit.restart_sec, unit.remain_after_exit) == ("simple", "no", 0.1, False)
    assert (unit.timeout_start, unit.timeout_stop, unit.timeout_abort, unit.runtime_max) == (90, 90, 90, math.inf)
    assert (unit.start_limit_interval, unit.start_limit_burst, unit.watchdog) == (10, 5, 0)
    assert (unit.kill_mode, unit.kill_signal, unit.restart_kill_signal, unit.final_kill_signal) == (
        "control-group",
        15,
        15,
        9,
    )
    assert (unit.send_sigkill, unit.send_sighup, unit.notify_access) == (True, False, "none")
    assert (unit.standard_input, unit.standard_output, unit.standard_error) == (
        *(Output("null"), Output("journal"), Output("inherit")),
    )
    assert (unit.description, unit.working_directory, unit.user) == ("agent.service", "", "")
    assert pickle.loads(pickle.dumps(unit)) == unit


def test_defaults_that_follow_from_other_lines():
    assert service("[Service]\nType=oneshot\nExecStart=/bin/true").timeout_start == math.inf
    assert service("[Service]\nExecStop=/bin/true\nRemainAfterExit=yes").type == "oneshot"
    assert service("[Service]\nType=notify\nExecStart=/bin/true").notify_access == "main"
    assert one("WatchdogSec=5").notify_access == "main"
    assert one("WatchdogSec=5\nNotifyAccess=all").notify_access == "all"
    assert one("TimeoutSec=7").timeout_abort == 7
    assert one("KillSignal=INT").restart_kill_signal == 2


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("Type=exec", "type", "exec"),
        ("Restart=on-watchdog", "restart", "on-watchdog"),
        ("RestartSec=1min 30s", "restart_sec", 90.0),
        ("RestartSec=infinity", "restart_sec", math.inf),
        ("TimeoutStartSec=0", "timeout_start", math.inf),
        ("TimeoutStopSec=20ms", "timeout_stop", 0.02),
        ("TimeoutAbortSec=3", "timeout_abort", 3.0),
        ("RuntimeMaxSec=1d", "runtime_max", 86400.0),
        ("WatchdogSec=infinity", "watchdog", 0.0),
        ("StartLimitBurst=0", "start_limit_burst", 0),
        ("StartLimitInterval=1h", "start_limit_interval", 3600.0),
        ("KillMode=mixed", "kill_mode", "mixed"),
        ("FinalKillSignal=SIGABRT", "final_kill_signal", 6),
        ("SendSIGHUP=yes", "send_sighup", True),
        ("SendSIGKILL=no", "send_sigkill", False),
        ("RemainAfterExit=true", "remain_after_exit", True),
        ("WorkingDirectory=/opt/%p", "working_directory", "/opt/agent"),
        ("WorkingDirectory=~", "working_directory", "~"),
        ("WorkingDirectory=/a\nWorkingDirectory=", "working_directory", ""),
        ("User=%p", "user", "agent"),
        ("Group=1000", "group", "1000"),
        ("User=a\nUser=", "user", ""),
        ("PassEnvironment=A B\nPassEnvironment=\nPassEnvironment=C C", "pass_environment", ("C",)),
        ("UnsetEnvironment=A 'B=x y'", "unset_environment", ("A", "B=x y")),
        ("StandardOutput=append:/var/log/%N.log", "standard_output", Output("append", "/var/log/agent.log")),
        ("StandardError=truncate:/x", "standard_error", Output("truncate", "/x")),
        ("StandardOutput=syslog", "standard_output", Output("journal")),
        ("StandardOutput=null\nStandardOutput=inherit", "standard_output", Output("journal")),
        ("StandardInput=file:/etc/motd", "standard_input", Output("file", "/etc/motd")),
        ("SyslogIdentifier=%p-1", "syslog_identifier", "agent-1"),
        ("Sockets=b.socket a.socket", "sockets", ("a.socket", "b.socket")),
        ("ExitType=main\nWatchdogSignal=ABRT\nNonBlocking=no\nTimeoutStopFailureMode=terminate", "type", "simple"),
        ("GuessMainPID=no\nSyslogLevel=debug\nFileDescriptorStoreMax=0", "type", "simple"),
    ],
)
def test_directives_of_a_service(line, field, value):
    assert getattr(one(line), field) == value


def test_what_may_be_missing():
    unit = one("WorkingDirectory=-/opt\nEnvironmentFile=-/etc/%p.env\nEnvironmentFile=/x")
    assert unit.working_directory_optional
    assert unit.environment_files == (
        EnvironmentFile("/etc/agent.env", True, Origin("/units/agent.service", 3)),
        EnvironmentFile("/x", False, Origin("/units/agent.service", 4)),
    )


def test_an_environment():
    unit = one("Environment=A=1 \"B=two words\" 'C=%p' D=\\x41\nEnvironment=A=3 E=")
    assert unit.environment == {"A": "3", "B": "two words", "C": "agent", "D": "A", "E": ""}
    assert one("Environment=A=1\nEnvironment=\nEnvironment=B=2").environment == {"B": "2"}


def test_exit_statuses():
    prevented = "RestartPreventExitStatus=3\nRestartPreventExitStatus="
    unit = one(f"SuccessExitStatus=1 SIGUSR1\nSuccessExitStatus=TEMPFAIL 250\n{prevented}")
    assert (unit.success.codes, unit.success.signals) == ({1, 75, 250}, {10})
    assert unit.restart_prevent.codes == frozenset()


def test_command_lines():
    unit = one("ExecStartPre=-/bin/a 'x y' ; @/bin//b c d\nExecStartPre=:/bin/e $A %% %i\nExecStop=-@:/bin/f g")
    origin = Origin("/units/agent.service", 2)
    assert unit.exec_start_pre[:2] == (
        Exec("/bin/a", ("/bin/a", "x y"), True, True, origin),
        Exec("/bin/b", ("c", "d"), False, True, origin),
    )
    assert unit.exec_start_pre[2].words == ("/bin/e", "$A", "%", "")
    assert not unit.exec_start_pre[2].expand_variables
    assert unit.exec_stop == (Exec("/bin/f", ("g",), True, False, Origin("/units/agent.service", 4)),)
    assert one("ExecStartPre=/bin/a\nExecStartPre=\nExecStartPre=python -c 1").exec_start_pre[0].program == "python"


def test_dependencies():
    unit = service(
        "[Unit]\nAfter=b.target other@.service\nAfter=a.target\nRequires=db@1.service\nAfter=\nWants=w.service\n"
        "[Service]\nExecStart=/bin/true\n",
        "agent@x-y.service",
    )
    assert unit.dependencies.after == ("a.target", "b.target", "other@x-y.service")
    assert (unit.dependencies.requires, unit.dependencies.wants) == (("db@1.service",), ("w.service",))
    assert unit.origins["Unit.After=b.target"].line == 2
    assert unit.origins["Unit.After=a.target"].line == 3


def test_drop_ins_come_later():
    unit = service(
        "[Service]\nExecStart=/bin/a\nEnvironment=A=1\nRestart=no\n",
        "agent.service",
        "[Service]\nExecStart=\nExecStart=/bin/b\n",
        "[Service]\nEnvironment=B=2\nRestart=always\nMemoryMax=1G\n",
    )
    assert [command.program for command in unit.exec_start] == ["/bin/b"]
    assert unit.environment == {"A": "1", "B": "2"}
    assert unit.origins["Service.Restart"] == Origin("/units/agent.service.d/1.conf", 3)
    assert unit.confinement == (Directive("MemoryMax", "1G", Origin("/units/agent.service.d/1.conf", 4)),)
    assert len(unit.files) == 3


def test_sandboxing_is_kept_as_it_is_written_in_order():
    unit = one("ProtectSystem=strict\nReadWritePaths=%S/%p\nProtectSystem=\nCPUQuota=50%")
    assert [(one.name, one.value) for one in unit.confinement] == [
        *[
            ("ProtectSystem", "strict"),
            ("ReadWritePaths", "/var/lib/agent"),
            ("ProtectSystem", ""),
            ("CPUQuota", "50%"),
        ],
    ]


def test_the_section_of_osmoda():
    unit = one(
        "Profile=research\nTier=2\nServe=8081 8082\nServe=80\nHealthCheck=http://:8081/health?x=1\nHealthCheck=tcp:8082\n"
        "HealthCheck=exec:/bin/check '--all of it'\nHealthInterval=1min\nHealthTimeout=2s\nHealthStartPeriod=0\n"
        "HealthRetries=5\nRestartGroup=pipeline 5 / 1min\nWorkspace=/srv/%p\nPool=2",
        "X-Osmoda",
    ).osmoda
    assert (unit.profile, unit.tier, unit.serve, unit.workspace, unit.pool) == (
        "research",
        2,
        (80, 8081, 8082),
        "/srv/agent",
        2,
    )
    assert (unit.group, unit.group_burst, unit.group_interval) == ("pipeline", 5, 60.0)
    health = unit.health
    assert (health.interval, health.timeout, health.start_period, health.retries) == (60, 2, 0, 5)
    assert [(check.kind, check.target) for check in health.checks] == [
        ("http", "http://:8081/health?x=1"),
        ("tcp", "8082"),
        ("command", "/bin/check '--all of it'"),
    ]
    assert health.checks[2].command is not None
    assert health.checks[2].command.words == ("/bin/check", "--all of it")
    assert health.checks[0].origin.line == 6
    assert one("RestartGroup=a", "X-Osmoda").osmoda.group_burst == 0
    assert one("HealthCheck=tcp:1\nHealthCheck=", "X-Osmoda").osmoda.health.checks == ()
    assert one("HealthCheck=http://localhost:80", "X-Osmoda").osmoda.health.checks[0].target == "http://:80/"


@pytest.mark.parametrize(
    ("section", "line", "says"),
    [
        ("Service", "Restrat=always", "Restrat= is no directive of [Service]; Restart= is"),
        ("Service", "Description=x", "Description= is no directive of [Service]; it belongs into [Unit]"),
        ("Unit", "Tier=1", "Tier= is no directive of [Unit]; it belongs into [X-Osmoda]"),
        ("X-Osmoda", "Capabilities=all", "Capabilities= is no directive of [X-Osmoda]"),
        ("Service", "PIDFile=/run/x", "PIDFile= is not supported: only Type=forking has a file of its process id"),
        ("Service", "Type=forking", "Type=forking is not supported: what stays"),
        ("Service", "Type=daemon", "Type=daemon is not one of simple, exec, notify, oneshot"),
        ("Service", "Restart=sometimes", "Restart=sometimes is not supported, only no, always"),
        ("Service", "RestartSec=soon", 'RestartSec=soon is no time span such as "90"'),
        ("Service", "RestartSec=", "RestartSec= is no time span"),
        ("Service", "KillMode=process", "KillMode=process is not supported: processes would be left behind"),
        ("Service", "KillSignal=SIGNOPE", "KillSignal=SIGNOPE is no signal"),
        ("Service", "SendSIGHUP=maybe", "SendSIGHUP=maybe is neither yes nor no"),
        ("Service", "WorkingDirectory=opt", "WorkingDirectory=opt is no absolute path"),
        ("Service", "WorkingDirectory=/a/../b", 'has ".." in it'),
        ("Service", "EnvironmentFile=.env", "EnvironmentFile=.env is no absolute path"),
        ("Service", "User=a:b", "User=a:b is no user or group"),
        ("Service", "User=%z", "%z is no specifier; '%%' is a percent sign"),
        ("Service", "StandardOutput=tty", "StandardOutput=tty is not supported, only journal"),
        ("Service", "StandardInput=socket", "StandardInput=socket is not supported, only null"),
        ("Service", "SuccessExitStatus=0 300", "holds '300', which is neither an exit status nor a signal"),
        ("Service", "ExecStop=+/bin/a", 'has the prefix "+", which is not supported: it would run outside the sandbox'),
        ("Service", "ExecStop=!!/bin/a", 'has the prefix "!"'),
        ("Service", "ExecStop=/bin/a 'b", "has a quote that is not closed"),
        ("Service", "ExecStop=bin/a", "neither an absolute path nor a plain name"),
        ("Service", "ExecStop=/bin/", "neither an absolute path nor a plain name"),
        ("Service", "ExecStop=-", "has no program"),
        ("Service", "ExecStop=@/bin/a", 'has no name for the program behind "@"'),
        ("Service", "ExecStop=/bin/a %", "a '%' at the end is no specifier"),
        ("Service", "NonBlocking=yes", "NonBlocking=yes is not supported: sockets are handed over as they are"),
        ("Service", "WatchdogSignal=TERM", "WatchdogSignal=TERM is not supported: the watchdog sends SIGABRT"),
        ("Service", "StartLimitAction=reboot", "an agent does not decide on the host"),
        ("Service", "Sockets=a.service", "is no name that ends in .socket"),
        ("Unit", "After=nothing", "After=nothing is no name of a unit"),
        ("Unit", "OnFailure=mail.service", "OnFailure= is not supported: no unit starts or stops another"),
        ("Unit", "ConditionFirstBoot=no", "ConditionFirstBoot= is not supported: this condition is not evaluated"),
        ("Unit", "JobTimeoutSec=5", "JobTimeoutSec=5 is not supported: TimeoutStartSec= bounds a start"),
        ("Install", "UpheldBy=a.target", "UpheldBy= is not supported"),
        ("Install", "DefaultInstance=a", "means nothing for a unit that is no template"),
        ("X-Osmoda", "Tier=3", "Tier=3 is no tier, which are 0, 1 and 2"),
        ("X-Osmoda", "Profile=../x", "is neither an absolute path nor the name of a profile"),
        ("X-Osmoda", "Serve=0", "Serve=0 is no port"),
        ("X-Osmoda", "HealthCheck=http://example.com:80/", "is no address of the agent itself"),
        ("X-Osmoda", "HealthCheck=ping", "is no check"),
        ("X-Osmoda", "HealthCheck=exec:", "is not one command"),
        ("X-Osmoda", "HealthCheck=exec:/a ; /b", "is not one command"),
        ("X-Osmoda", "HealthInterval=0", "is not between 1us and 1 day"),
        ("X-Osmoda", "HealthRetries=0", "it is at least 1"),
        ("X-Osmoda", "RestartGroup=a b", "has an intensity that is not BURST/SPAN"),
        ("X-Osmoda", "RestartGroup=a 0/1s", "has an intensity of 0"),
        ("X-Osmoda", "Workspace=here", "is no absolute path"),
        ("X-Osmoda", "Pool=17", "Pool=17 is above 16"),
    ],
)  # fmt: skip
def test_what_is_refused_with_its_line(section, line, says):
    with pytest.raises(UnitError, match=re.escape(says)) as refused:
        one(line, section)
    assert refused.value.origin == Origin("/units/agent.service", 2)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("[Service]\n", 1, "neither ExecStart= nor ExecStop="),
        ("[Service]\nExecStop=/bin/a\nType=notify", 3, "Type=notify needs ExecStart="),
        ("[Service]\nExecStop=/bin/a", 1, "needs RemainAfterExit=yes"),
        ("[Service]\nExecStart=/bin/a\nExecStart=/bin/b", 3, "only Type=oneshot runs several"),
        ("[Service]\nType=oneshot\nExecStart=/bin/a\nRestart=always", 4, "would never be done"),
        ("[Service]\nType=oneshot\nExecStart=/bin/a\nRuntimeMaxSec=1", 4, "TimeoutStartSec="),
        ("[Service]\nExecStart=/bin/a\nRestartSteps=3", 3, "only together"),
        (
            "[Service]\nExecStart=/bin/a\nRestartSec=9\nRestartSteps=1\nRestartMaxDelaySec=3",
            5,
            "is less than RestartSec=",
        ),
    ],
)
def test_lines_that_contradict_each_other(text, line, says):
    with pytest.raises(UnitError, match=re.escape(says)) as refused:
        service(text)
    assert refused.value.origin == Origin("/units/agent.service", line)


@pytest.mark.parametrize(
    "line", ["Environment=KEY=hunter2 hunter2", "Environment=KEY=hunter2 1=hunter2", "SetCredential=%z:hunter2"]
)
def test_secrets_are_not_repeated(line):
    with pytest.raises(UnitError) as refused:
        one(line)
    assert "hunter2" not in str(refused.value)


LINES = [f"[{section}]\n{name}=" for section, rules in directives.SERVICE.items() for name in rules]
VALUES = st.text(st.sampled_from("ab1 %i$\\\"';:/-@=.\n\t\u00e4\x1b0"), max_size=12)


@given(st.lists(st.tuples(st.sampled_from(LINES), VALUES), max_size=6))
def test_any_values_make_a_unit_or_an_error_in_one_line(lines):
    text = "".join(f"{start}{value}\n" for start, value in lines) + "[Service]\nExecStart=/bin/true\n"
    try:
        unit = service(text)
    except UnitError as error:
        origins, message = [error.origin], str(error)
    else:
        origins, message = [*unit.origins.values()], ""
    assert all(origin is not None and 1 <= origin.line <= text.count("\n") for origin in origins)
    assert message.isprintable()


def test_the_host_of_these_tests_is_not_this_one():
    assert one("Environment=A=%m").environment == {"A": HOST.machine_id}
