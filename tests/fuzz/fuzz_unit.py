"""Units, and files of variables: any bytes are a unit that says where each value stands, or a UnitError in one line."""

from __future__ import annotations

import math

from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.units import directives, environment, reading, values, words
from osmoda.supervisor.units.unit import Unit
from tests.fuzz.lane import Choices, run
from tests.unit_hosts import HOST

INSTRUMENTED = ("osmoda.supervisor",)

FILE = "/units/agent@a-b.service"
SERVICE, SOCKET = values.unit_name("agent@a-b.service"), values.unit_name("agent@a-b.socket")
SAMPLE = b"""[Unit]
Description=Agent of %i
After=network-online.target other@.service
ConditionPathExists=|!/etc/%p.conf

[Service]
Type=notify
WorkingDirectory=-/opt/%i
Environment="A=1 2" 'B=%%' C=\\x41
EnvironmentFile=-/opt/%i/.env
ExecStartPre=-/bin/sh -c 'exit "$$A"' ; /bin/true \\; x
ExecStart=/opt/agent \\
    # a comment
    --name "%n" ${A} $B
Restart=on-failure
RestartSec=1min 2.5s
SuccessExitStatus=3 SIGUSR1 TEMPFAIL
WatchdogSec=30
MemoryMax=512M

[X-Osmoda]
Profile=research
Serve=8081 8082
HealthCheck=http://:8081/health
HealthCheck=exec:/bin/check --all
RestartGroup=pipeline 5/1min

[Install]
WantedBy=multi-user.target
"""
LISTENING = b"""[Socket]
ListenStream=/run/a.sock
ListenStream=[::1]:80
ListenDatagram=@a
FileDescriptorName=web
SocketMode=0660
"""
PIECES = (
    *("%i", "%", "%%", "%z", "\\", "\\x00", "\\xff", "\\u20ac", "\\U0010ffff", "\\777", '"', "'", ";", " ; ", "\\;"),
    *(
        "\t",
        "\n",
        "\\\n",
        "\n#",
        "[Service]\n",
        "[X-Other]\n",
        "=",
        "-",
        "@",
        ":",
        "+",
        "!",
        "|",
        "~",
        "/",
        "/..",
        "//",
    ),
    *("a/b", "$A", "${A}", "${", "$$", "0", "1", "-1", "infinity", "99999999999999999999", "1.5.", "1 .5", "5min"),
    *("1y 1ms", "0x1f", "yes", "oFF", "SIGRTMIN+3", "RTMAX-99", "255", "256", "EX", "a.service", "a@.service"),
    *("@.service", "a@b@c.socket", "file:/x", "append:", "http://:80", "tcp:0", "exec:", "3/1s", "\0", "\x7f"),
    *("\x1b[31m", "\u00e4", "\ud800", "\u202e"),
)
NAMES = tuple(
    (section, name) for section, rules in directives.SERVICE.items() for name, rule in rules.items() if rule.handle
)


def any_bytes(choices: Choices) -> None:
    check(choices.rest())


def any_lines(choices: Choices) -> None:
    """Directives of all sections, with values that are put together of what parsers look for."""
    lines = []
    for _ in range(choices.number(12)):
        section, name = choices.pick(NAMES)
        value = "".join(choices.pick(PIECES) for _ in range(choices.number(6)))
        lines.append(f"[{section}]\n{name}={value}")
    lines.append("[Service]\nExecStart=/bin/true")
    check("\n".join(lines).encode("utf-8", "surrogatepass" if choices.number(1) else "replace"))


def damaged(choices: Choices) -> None:
    text = bytearray(choices.pick((SAMPLE, LISTENING)))
    for _ in range(choices.number(5) + 1):
        at = choices.number(len(text))
        text[at : at + choices.number(8)] = choices.pick(
            (choices.piece(8), choices.pick(PIECES).encode("utf-8", "replace"))
        )
    check(bytes(text))


def check(content: bytes) -> None:
    for name, read in ((SERVICE, reading.service), (SOCKET, reading.socket)):
        try:
            unit = read(name, [(FILE, content)], HOST)
        except UnitError as error:
            refusal(error, content)
            continue
        for origin in unit.origins.values():
            place(origin.file, origin.line, content)
        assert read(name, [(FILE, content)], HOST) == unit
        if isinstance(unit, Unit):
            meaning(unit)


def refusal(error: UnitError, content: bytes) -> None:
    assert error.origin is not None
    place(error.origin.file, error.origin.line, content)
    assert error.message.isprintable(), repr(error.message)


def place(file: str, line: int, content: bytes) -> None:
    assert file == FILE
    assert 1 <= line <= content.count(b"\n") + content.count(b"\r") + 1


def meaning(unit: Unit) -> None:
    for command in (*unit.exec_start_pre, *unit.exec_start, *unit.exec_stop):
        assert command.program.startswith("/") or "/" not in command.program
        assert command.words
        assert list(words.split(" ".join(words.quote(word) for word in command.words), unescape=True)) == [
            *command.words
        ]
        assert all("\0" not in word for word in environment.expand(command, {"A": 'x "y', **unit.environment}))
    for seconds in (unit.timeout_start, unit.timeout_stop, unit.restart_sec, unit.watchdog, unit.start_limit_interval):
        assert seconds >= 0
        assert not math.isnan(seconds)
    assert all(environment.is_name(name) and "\0" not in value for name, value in unit.environment.items())
    assert all(1 <= port <= 65535 for port in unit.osmoda.serve)


def variables(choices: Choices) -> None:
    text = choices.rest().decode("utf-8", "replace")
    for line in environment.variables(text):
        assert 1 <= line.line <= text.count("\n") + 1
        assert "\0" not in line.name + line.value
        assert "=" not in line.name[1:]  # systemd takes a first "=" into the name, which then is none


MODES = (any_bytes, any_lines, damaged, variables)


def one(data: bytes) -> None:
    choices = Choices(data)
    choices.pick(MODES)(choices)


if __name__ == "__main__":
    run(one)
