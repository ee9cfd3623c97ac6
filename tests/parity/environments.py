"""Scenarios: what a program finds: its variables, arguments, directory and streams (systemd.exec(5))."""

from __future__ import annotations

from tests.parity.stage import Stage

ONESHOT = "Type=oneshot\n"


def _said(stage: Stage, directives: str, command: str) -> list[str]:
    stage.service(f"{ONESHOT}{directives}ExecStart={command}\n")
    assert stage.start("alpha.service"), stage.state("alpha.service")
    return stage.trace()


def variables_from_the_unit(stage: Stage) -> None:
    said = _said(
        stage,
        "Environment=ONE=1 \"TWO=two words\" 'THREE=$ONE'\nEnvironment=ONE=again\n",
        "/bin/sh -c 'echo \"$ONE|$TWO|$THREE\" >>trace'",
    )
    # The shell is not asked: systemd puts variables in before.
    assert said == ["again|two words|$ONE"]


def variables_in_arguments(stage: Stage) -> None:
    stage.file("arguments.sh", 'for word in "$@"; do echo "[$word]" >>trace; done\n')
    said = _said(
        stage,
        "Environment='A=one two' B=three\n",
        "/bin/sh @dir@/arguments.sh $A ${A} x${B}y x$B $NOTHING ${NOTHING} $$B",
    )
    assert said == ["[one]", "[two]", "[one two]", "[xthreey]", "[x$B]", "[]", "[$B]"]


def no_variables_behind_a_colon(stage: Stage) -> None:
    stage.file("arguments.sh", 'for word in "$@"; do echo "[$word]" >>trace; done\n')
    said = _said(stage, "Environment=B=three\n", ":/bin/sh @dir@/arguments.sh ${B} $B $$B")
    assert said == ["[${B}]", "[$B]", "[$$B]"]


def quotes_and_escapes(stage: Stage) -> None:
    stage.file("arguments.sh", 'for word in "$@"; do echo "[$word]" >>trace; done\n')
    said = _said(stage, "", r"""/bin/sh @dir@/arguments.sh 'a b' "c \"d\"" \x41 e\sf "" %% '%%' 'g'h \\ \;""")
    assert said == ["[a b]", '[c "d"]', "[A]", "[e f]", "[]", "[%]", "[%]", "[gh]", "[\\]", "[;]"]


def a_line_goes_on_after_a_backslash(stage: Stage) -> None:
    stage.file("arguments.sh", 'for word in "$@"; do echo "[$word]" >>trace; done\n')
    assert _said(stage, "", "/bin/sh @dir@/arguments.sh one \\\n# a comment\n  two") == ["[one]", "[two]"]


def variables_from_a_file(stage: Stage) -> None:
    stage.file(
        "variables",
        "# a comment\nONE=1\nTWO=\"two words\"\nTHREE='$ONE'\nFOUR=a\\\nb\n; another\nFIVE=5 # no comment\n",
    )
    said = _said(
        stage,
        "Environment=ONE=unit\nEnvironmentFile=@dir@/variables\n",
        "/bin/sh -c 'echo \"$ONE|$TWO|$THREE|$FOUR|$FIVE\" >>trace'",
    )
    assert said == ["1|two words|$ONE|ab|5 # no comment"]


def a_file_of_variables_may_be_missing_behind_a_dash(stage: Stage) -> None:
    said = _said(stage, "Environment=ONE=unit\nEnvironmentFile=-@dir@/nothing\n", "/bin/sh -c 'echo \"$ONE\" >>trace'")
    assert said == ["unit"]


def without_its_file_of_variables_a_service_does_not_start(stage: Stage) -> None:
    stage.service("EnvironmentFile=@dir@/nothing\n", program="echo run >>trace\n")
    assert not stage.start("alpha.service")
    state = stage.until_state("failed", "failed")
    # Under systemd osmoda reads the file itself: the agent could have written it.
    assert state.result in ("resources", "exit-code")
    assert stage.trace() == []


def a_file_of_variables_is_read_at_each_start(stage: Stage) -> None:
    stage.file("variables", "ONE=1\n")
    said = _said(stage, "EnvironmentFile=@dir@/variables\n", "/bin/sh -c 'echo \"$ONE\" >>trace'")
    assert said == ["1"]
    stage.file("variables", "ONE=2\n")
    assert stage.start("alpha.service")
    assert stage.trace() == ["1", "2"]


def variables_taken_away(stage: Stage) -> None:
    said = _said(
        stage,
        "Environment=ONE=1 TWO=2 THREE=3\nUnsetEnvironment=ONE TWO=no THREE=3\n",
        "/bin/sh -c 'echo \"${ONE-none}|${TWO-none}|${THREE-none}\" >>trace'".replace("$", "$$"),
    )
    assert said == ["none|2|none"]


def nothing_of_the_supervisors_environment_is_passed(stage: Stage) -> None:
    said = _said(stage, "", "/bin/sh -c 'echo \"$${NOTHING_OF_IT-none}|$${PYTHONPATH-none}\" >>trace'")
    assert said == ["none|none"]


def specifiers(stage: Stage) -> None:
    said = _said(stage, "Environment=NAME=%n\n", "/bin/sh -c 'echo \"$NAME|%N|%p|%i|%T\" >>trace'")
    assert said == ["alpha.service|alpha|alpha||/tmp"]


def an_instance_of_a_template(stage: Stage) -> None:
    stage.service(
        "Type=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c 'echo %i %I %p >>trace'\n", name="alpha@.service"
    )
    assert stage.start("alpha@one-two.service")
    assert stage.trace() == ["one-two one/two alpha"]
    state = stage.state("alpha@one-two.service")
    assert (state.active, state.sub) == ("active", "exited")


def the_directory_it_works_in(stage: Stage) -> None:
    (stage.folder / "below").mkdir()
    stage.service("Type=oneshot\nWorkingDirectory=@dir@/below\nExecStart=/bin/sh -c 'pwd >>@dir@/below/trace'\n")
    assert stage.start("alpha.service")
    assert stage.trace("below/trace") == [str(stage.folder / "below")]


def without_its_directory_a_service_does_not_start(stage: Stage) -> None:
    stage.service("Type=oneshot\nWorkingDirectory=@dir@/nothing\nExecStart=/bin/sh -c 'echo run >>@dir@/trace'\n")
    assert not stage.start("alpha.service")
    state = stage.until_state("failed", "failed")
    assert state.result in ("exit-code", "resources")
    assert stage.trace() == []


def there_is_nothing_on_standard_input(stage: Stage) -> None:
    assert _said(stage, "", "/bin/sh -c 'wc -c >>trace'") == ["0"]


def output_into_a_file(stage: Stage) -> None:
    stage.file("said", "before, and longer\n")
    stage.service(
        "Type=oneshot\nStandardOutput=append:@dir@/said\nStandardError=truncate:@dir@/errors\n"
        "ExecStart=/bin/sh -c 'echo out; echo err >&2'\n"
    )
    stage.file("errors", "before, and longer\n")
    assert stage.start("alpha.service")
    assert stage.trace("said") == ["before, and longer", "out"]
    assert stage.trace("errors") == ["err"]


def output_to_nowhere(stage: Stage) -> None:
    said = _said(
        stage, "StandardOutput=null\nStandardError=null\n", "/bin/sh -c 'echo out && echo err >&2 && echo run >>trace'"
    )
    assert said == ["run"]


def only_three_descriptors_are_open(stage: Stage) -> None:
    stage.file(
        "open.py",
        """import os
for number in range(64):
    try:
        os.fstat(number)
    except OSError:
        continue
    print(number)
""",
    )
    stage.service("Type=oneshot\nStandardOutput=append:@dir@/said\nExecStart=/usr/bin/python3 -S -E @dir@/open.py\n")
    assert stage.start("alpha.service")
    assert stage.trace("said") == ["0", "1", "2"]


def no_signals_are_blocked(stage: Stage) -> None:
    stage.service("Type=oneshot\nStandardOutput=append:@dir@/said\nExecStart=/usr/bin/grep SigBlk: /proc/self/status\n")
    assert stage.start("alpha.service")
    assert stage.trace("said") == ["SigBlk:\t0000000000000000"]


def what_systemd_confines_is_confined(stage: Stage) -> None:
    """Its own sandboxing, as units have it: carried out by whoever runs the program."""
    stage.file(
        "tries.sh",
        'grep NoNewPrivs: /proc/self/status >>trace\necho "files $(ulimit -n)" >>trace\n'
        "for path in /usr/tried /etc/tried; do (echo x >$path) 2>/dev/null && echo $path written >>trace; done\n"
        "(unshare --user true) 2>/dev/null && echo namespace made >>trace\n"
        "[ -e /dev/kmsg ] && echo kmsg seen >>trace\necho done >>trace\n",
    )
    stage.service(
        "Type=oneshot\nNoNewPrivileges=yes\nProtectSystem=strict\nReadWritePaths=@dir@\nProtectHome=yes\n"
        "PrivateDevices=yes\nPrivateNetwork=yes\nRestrictNamespaces=yes\nRestrictRealtime=yes\nRestrictSUIDSGID=yes\n"
        "LockPersonality=yes\nSystemCallFilter=@system-service\nSystemCallErrorNumber=EPERM\n"
        "SystemCallArchitectures=native\nCapabilityBoundingSet=\nProtectKernelTunables=yes\nProtectKernelModules=yes\n"
        "ProtectKernelLogs=yes\nProtectControlGroups=yes\nProtectClock=yes\nProtectHostname=yes\nPrivateIPC=yes\n"
        "RestrictAddressFamilies=AF_UNIX AF_INET\nLimitNOFILE=64\nExecStart=/bin/sh @dir@/tries.sh\n"
    )
    assert stage.start("alpha.service")
    assert stage.trace() == ["NoNewPrivs:\t1", "files 64", "done"]
