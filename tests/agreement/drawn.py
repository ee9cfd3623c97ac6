"""Units that nobody would write, to be read by both: files that lie in each other's way, and values drawn at random.

The drawing is the same at every run with one seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

# A path below the folder of units: a file's text, or "-> TARGET" for a link.
FILES = {
    "way-of-files.service": "[Unit]\nDescription=%p %i %j\n[Service]\nExecStart=/bin/true first\nEnvironment=A=1 B=1\n",
    "way-of-files.service.d/50-b.conf": "[Service]\nEnvironment=B=2 C=2\nExecStart=\nExecStart=/bin/true second\n",
    "way-of-files.service.d/10-a.conf": "[Service]\nEnvironment=C=1 D=1\nRestartSec=7\n",
    "way-of-.service.d/50-b.conf": "[Service]\nEnvironment=B=never\n",
    "way-of-.service.d/60-c.conf": "[Service]\nEnvironment=E=prefix\n",
    "way-.service.d/60-c.conf": "[Service]\nEnvironment=E=never\n",
    "way-.service.d/70-d.conf": "[Service]\nEnvironment=F=short\n",
    "way-of-files.service.d/80-masked.conf": "-> /dev/null",
    "way-.service.d/80-masked.conf": "[Service]\nEnvironment=G=never\n",
    "way-of-files.service.wants/other-unit.service": "-> ../other-unit.service",
    "way-of-files.service.requires/third-unit.service": "-> ../third-unit.service",
    "other-unit.service": "[Service]\nExecStart=/bin/true\n",
    "third-unit.service": "[Service]\nExecStart=/bin/true\n",
    "alias-of-it.service": "-> way-of-files.service",
    "alias-of-it.service.d/90-e.conf": "[Service]\nEnvironment=H=alias\n",
    "many-x@.service": "[Unit]\nAfter=other@.service\n[Service]\nExecStart=/bin/true %i %I %p %P %j %f %n %N\n",
    "many-x@.service.d/a.conf": "[Service]\nEnvironment=A=template\n",
    r"many-x@in-st\x2dance.service.d/b.conf": "[Service]\nEnvironment=B=instance\n",
    r"many-@in-st\x2dance.service.d/c.conf": "[Service]\nEnvironment=C=prefix-with-instance\n",
    "many-@.service.d/d.conf": "[Service]\nEnvironment=D=prefix\n",
    "many-.service.d/e.conf": "[Service]\nEnvironment=E=prefix-without-instance\n",
    "alias-x@.service": "-> many-x@.service",
    "many-x@own.service": "-> many-x@.service",
    "service.d/zz-all.conf": "[Service]\nPassEnvironment=EVERYWHERE\n",
}
LOADED = (
    *("way-of-files.service", "alias-of-it.service", r"many-x@in-st\x2dance.service", "many-x@own.service"),
    r"alias-x@in-st\x2dance.service",
)

_TIMES = (
    "0",
    "5",
    "1.5",
    "2min 3s",
    "infinity",
    "7us",
    "1h30min",
    "1 month",
    "12.34 .56",
    "3m",
    "4M",
    "x",
    "-1",
    "5 6",
)
_SIGNALS = ("TERM", "SIGINT", "9", "RTMIN+2", "SIGRTMAX-1", "SIGPOLL", "0", "usr1")
_BOOLEANS = ("yes", "no", "on", "0", "T", "maybe")
_STATUS = ("0", "1", "TEMPFAIL", "250", "SIGKILL", "HUP", "300", "0x10", "DATAERR SIGUSR2", "")
_UNITS = (
    "a.service",
    "b.target",
    "c@.service",
    "d@x.service",
    "'e.service'",
    r"f\x2dg.service",
    "h",
    "%p-x.socket",
    "",
)
_COMMAND = (
    *("/bin/a", "/bin//b", "'/bin/c d'", "plain", "bin/e", "-/bin/f", "@/bin/g h", ":/bin/i", "-@:/bin/j k", "/bin/%p"),
    *("", "--", "-", "@/bin/l", ";", "/bin/"),
)
# No byte that is not UTF-8: D-Bus, which systemd answers over, has none.
_WORDS = (
    *(
        "a",
        "'b c'",
        '"d e"',
        r"\x41\101\u20ac",
        r"\s\t\n",
        r"\.",
        r"\q",
        "%%",
        "%n",
        "%p",
        "$A",
        "${B}",
        "$$",
        "''",
        "f'g h'i",
    ),
    *(
        '"',
        "'",
        "\\\\",
        "\\",
        ";",
        "\\;",
        "'\\;'",
        "#",
        "=",
        "\\\n  ",
        "\\\n# comment\n",
        "\u00e4",
        r"\0",
        "50%",
    ),
)
_ASSIGNMENTS = (
    "A=1",
    "'B=2 3'",
    '"C=%p"',
    r"D=\x41",
    "E=",
    "A=2",
    "1F=x",
    "=x",
    "G",
    r"'H=\"'",
    "I=a=b",
    "J='k'",
    "L=%%",
)
_PATHS = ("/opt", "-/opt", "~", "/a//b/./c/", "/a/../b", "rel", "/%p", "", "-", "/%z", "-~")
# Directives, and what their values are drawn from.
_DIRECTIVES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("RestartSec", "TimeoutStartSec", "TimeoutStopSec", "TimeoutAbortSec"), _TIMES),
    **dict.fromkeys(("TimeoutSec", "RuntimeMaxSec"), _TIMES),
    **dict.fromkeys(("KillSignal", "RestartKillSignal", "FinalKillSignal"), _SIGNALS),
    **dict.fromkeys(("RemainAfterExit", "SendSIGHUP", "SendSIGKILL"), _BOOLEANS),
    **dict.fromkeys(("SuccessExitStatus", "RestartPreventExitStatus", "RestartForceExitStatus"), _STATUS),
    "Type": ("simple", "exec", "notify", "oneshot", "forking"),
    "Restart": ("no", "always", "on-failure", "on-success", "sometimes"),
    "NotifyAccess": ("none", "main", "exec", "all", "some"),
    "KillMode": ("control-group", "mixed", "process"),
    "WorkingDirectory": _PATHS,
    "EnvironmentFile": _PATHS,
    "User": ("agent", "0", "%p", "a:b", "", "1000", "65535", "Two Words"),
    "Group": ("agent", "007", "", "a.b"),
    "StandardOutput": ("journal", "null", "inherit", "file:/x", "append:/%p", "truncate:rel", "syslog", "tty"),
    "StandardError": ("journal", "null", "inherit", "append:/x y"),
    "SyslogIdentifier": ("a b", "%N", "", "%%"),
    "PassEnvironment": ("A B", "1", "", "'C'", "A"),
    "UnsetEnvironment": ("A", "'B=x y'", "1=2", "", r"C=\x41"),
}  # fmt: skip
_OF_UNIT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("After", "Before", "Requires", "Wants", "BindsTo", "PartOf", "Conflicts", "Requisite"), _UNITS),
    "Description": ("a  b", "'quoted'", "%n", "", "50%%", "\\", "a \\\n b", "a\\\n; comment\n c"),
    "Documentation": ("man:a(1)", "https://a.example/%p man:b(2)", "nothing", ""),
    "ConditionPathExists": ("/a", "!/b//c", "|/d", "|!/%p", "rel", "", "| /e"),
    "ConditionHost": ("a", "!b", ""),
    "AssertPathExists": ("/a", ""),
    "StartLimitIntervalSec": _TIMES,
    "StartLimitBurst": ("0", "7", "0x10", "-1", "010"),
}


def units(seed: int, count: int) -> dict[str, str]:
    """Services by their names: some lines of each drawn, so that most are no units to either."""
    drawing = random.Random(seed)  # nobody's secret
    return {f"drawn-{number}.service": _unit(drawing) for number in range(count)}


def _unit(drawing: random.Random) -> str:
    lines = ["[Unit]"]
    lines += [
        f"{name}={drawing.choice(_OF_UNIT[name])}" for name in drawing.choices([*_OF_UNIT], k=drawing.randrange(4))
    ]
    lines += ["[Service]", f"ExecStart={_command(drawing)}"]
    lines += [
        f"{name}={drawing.choice(_DIRECTIVES[name])}"
        for name in drawing.choices([*_DIRECTIVES], k=drawing.randrange(4))
    ]
    for name in drawing.choices(("ExecStartPre", "ExecStop", "ExecReload", "ExecStartPost"), k=drawing.randrange(2)):
        lines.append(f"{name}={_command(drawing)}")
    for _ in range(drawing.randrange(3)):
        lines.append(f"Environment={' '.join(drawing.choices(_ASSIGNMENTS, k=drawing.randrange(4)))}")
    return "\n".join(lines) + "\n"


def _command(drawing: random.Random) -> str:
    command = drawing.choice(_COMMAND[:6]) if drawing.randrange(3) else drawing.choice(_COMMAND)
    return command + "".join(f" {word}" for word in drawing.choices(_WORDS, k=drawing.randrange(5)))


@dataclass(frozen=True)
class Run:
    """A service that is started: its text, and that of its file of variables."""

    text: str
    variables: str


_PIECES = (
    *(
        "V_A=",
        "V_B=",
        "V_C =",
        "1=",
        "=",
        "\n",
        "\n",
        "\n",
        "'",
        '"',
        "\\",
        "\\\n",
        " ",
        "\t",
        "a",
        "b c",
        "$V_A",
        "#",
        ";",
        "`",
    ),
    *("\u00e4", "export V_D=", "V_E='x y'\n", 'V_F="z\\"\\n"\n', "V_G=a\\ b\n", "\r\n", "V_A=it's\n"),
)
_ARGUMENTS = (
    *(
        "$V_A",
        "${V_A}",
        "x${V_B}y",
        "$V_NONE",
        "${V_NONE}",
        "$$V_A",
        "$${V_A}",
        "a$V_A",
        "$V_G",
        "'$V_E'",
        "$V_E",
        "${V_E}",
    ),
    *("${V_A", "$V_A.b", "${V_A:-x}", "$V_U", "${V_U}", "$", "$V_Q", "a"),
)


def runs(seed: int, count: int, folder: str) -> dict[str, Run]:
    """Services by their names, which say their arguments and variables; `folder` is where they find their files."""
    drawing = random.Random(seed)
    found = {}
    for number in range(count):
        name = f"run-{number}"
        arguments = " ".join(drawing.choices(_ARGUMENTS, k=drawing.randrange(6)))
        colon = ":" * (not drawing.randrange(8))
        text = (
            '[Service]\nType=oneshot\nEnvironment=V_U=unit V_A=unit "V_Q=\'a b\' c\\\\\\\\d \\\\\\"e"\n'
            f"EnvironmentFile={folder}/{name}\n"
            f"StandardOutput=append:{folder}/{name}.said\n"
            f"ExecStart={colon}/usr/bin/printf %%s\\\\0 {arguments} END\nExecStart=/usr/bin/env -0\n"
        )
        found[f"{name}.service"] = Run(text, "".join(drawing.choices(_PIECES, k=drawing.randrange(1, 12))))
    return found


def write(folder: Path) -> None:
    """FILES, below a folder."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if text.startswith("-> "):
            path.symlink_to(text.removeprefix("-> "))
        else:
            path.write_text(text)
