"""A command on a terminal: its own inside, the caller's outside, and the window, Ctrl-C and job control in between."""

from __future__ import annotations

import os
import signal
import termios

import pytest

from tests.terminals import Terminal
from tests.worlds import World


def inside(world: World, *command: str, **options: int) -> Terminal:
    return Terminal(world, world.osmoda_argv("run", "--tier", "2", "--", *command), **options)


def test_the_streams_are_a_terminal_of_the_sandboxs_own(world: World) -> None:
    with inside(world, "sh", "-c", "test -t 0 && test -t 1 && test -t 2 && tty; ls /dev/pts") as terminal:
        assert terminal.end() == 0
    assert terminal.screen == b"/dev/pts/0\r\n0  ptmx\r\n"


def test_only_what_is_a_terminal_becomes_one(world: World) -> None:
    """`osmoda-sandbox … | less`: stdin and stderr are terminals, stdout is the pipe."""
    probe = "for n in 0 1 2; do test -t $n && echo $n yes >&2 || echo $n no >&2; done; echo out"
    command = world.osmoda_argv("run", "--tier", "2", "--", "sh", "-c", probe)
    with Terminal(world, ["sh", "-c", '"$@" | sed s/out/through/', "sh", *command]) as terminal:
        assert terminal.end() == 0
    assert sorted(terminal.screen.splitlines()) == [b"0 yes", b"1 no", b"2 yes", b"through"]


def test_the_window_has_its_size_inside(world: World) -> None:
    with inside(world, "stty", "size", rows=33, columns=101) as terminal:
        assert terminal.end() == 0
    assert terminal.screen == b"33 101\r\n"


def test_a_resize_arrives(world: World) -> None:
    # Not from the trap itself: bash loses a signal that comes while its trap runs, and with `read -t` a line that comes
    # when the time is just up.
    look = "[ -z $w ] || { w=; size=$(stty size); echo $size; }"
    waiting = f"trap w=1 WINCH; echo ready; until [ \"$size\" = '25 90' ]; do sleep 0.02; {look}; done; read -r line"
    with inside(world, "bash", "-c", waiting) as terminal:
        terminal.expect("ready\r\n")
        terminal.resize(40, 120)
        terminal.expect("40 120\r\n")
        terminal.resize(25, 90)
        terminal.expect("25 90\r\n")
        terminal.press("\r")
        assert terminal.end() == 0


def test_ctrl_c_reaches_the_command(world: World) -> None:
    waiting = "trap 'echo interrupted; exit 7' INT; echo ready; while :; do sleep 0.02; done"
    with inside(world, "sh", "-c", waiting) as terminal:
        terminal.expect("ready\r\n")
        terminal.press("\x03")
        terminal.expect("interrupted\r\n")
        assert terminal.end() == 7


def test_ctrl_c_ends_a_command_that_does_not_handle_it(world: World) -> None:
    with inside(world, "sh", "-c", "echo ready; exec sleep 1000") as terminal:
        terminal.expect("ready\r\n")
        terminal.press("\x03")
        assert terminal.end() == 128 + signal.SIGINT


def test_keys_that_come_at_once_reach_the_command(world: World) -> None:
    """It is in the foreground from its first instruction on."""
    for _ in range(10):
        with inside(world, "sh", "-c", "echo ready; exec sleep 1000") as terminal:
            terminal.expect("r")
            terminal.press("\x03")
            assert terminal.end() == 128 + signal.SIGINT


def test_a_command_that_cannot_be_run_on_a_terminal(world: World) -> None:
    for command, code in (("no-such-command", 127), ("/etc/passwd", 126)):
        with inside(world, command) as terminal:
            assert terminal.end() == code
            assert terminal.screen.startswith(b"osmoda-sandbox: " + command.encode())


def test_ctrl_d_is_the_end_of_input(world: World) -> None:
    with inside(world, "sh", "-c", "echo ready; cat; echo over") as terminal:
        terminal.expect("ready\r\n")
        terminal.press("word\n\x04")
        terminal.expect("over\r\n")
        assert terminal.end() == 0
    assert terminal.screen == b"ready\r\nword\r\nword\r\nover\r\n", "the echo, and then the word"


def test_ctrl_z_stops_it_and_fg_goes_on(world: World) -> None:
    """The shell outside sees a job that stops and continues; the terminal is its own in between."""
    job = " ".join(world.osmoda_argv("run", "--tier", "2", "--", "bash", "-c"))
    with Terminal(world, ["bash", "--norc", "--noprofile", "-i"], env={"PS1": "<prompt>"}) as terminal:
        terminal.expect("<prompt>")
        terminal.press(f"{job} 'echo be\"\"gun; read -r line; echo got $line'\r")
        terminal.expect("begun\r\n")
        terminal.press("\x1a")
        terminal.expect("Stopped.*<prompt>")
        assert terminal.settings()[3] & termios.ISIG, "the terminal is not raw while the job is stopped"
        terminal.press("echo mean''while\r")
        terminal.expect("meanwhile\r\n.*<prompt>")
        terminal.press("fg\r")
        terminal.expect("bash -c.*\n")
        terminal.press("words\r")
        terminal.expect("got words\r\n.*<prompt>")
        terminal.press("exit\r")
        assert terminal.end() == 0


def test_a_shell_inside_has_job_control(world: World) -> None:
    with inside(world, "bash", "--norc", "--noprofile", "-i") as terminal:
        terminal.expect(r"\$ ")
        # What the job says itself comes when it is in the foreground; keys that are typed earlier are the shell's.
        terminal.press('bash -c \'trap "echo on a""gain" CONT; echo be""gun; while :; do sleep 0.02; done\'\r')
        terminal.expect("begun\r\n")
        terminal.press("\x1a")
        terminal.expect(r"Stopped.*\$ ")
        terminal.press("jobs\r")
        terminal.expect(r"\[1\].*Stopped.*\$ ")
        terminal.press("fg\r")
        terminal.expect("on again\r\n")
        terminal.press("\x03")
        terminal.expect(r"\$ ")
        terminal.press("exit 3\r")
        assert terminal.end() == 3
    assert b"no job control" not in terminal.screen
    assert b"cannot set terminal process group" not in terminal.screen


def comparable(settings: list[object]) -> list[object]:
    return settings[:6]  # not the control characters: the kernel fills in two of them


def test_the_terminal_is_raw_during_and_restored_after(world: World) -> None:
    with inside(world, "sh", "-c", "echo ready; read -r line") as terminal:
        before = comparable(terminal.before)
        terminal.expect("ready\r\n")
        assert not terminal.settings()[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        terminal.press("\r")
        assert terminal.end() == 0
        assert comparable(terminal.settings()) == before


@pytest.mark.parametrize("name", ["TERM", "HUP", "INT"])
def test_the_terminal_is_restored_after_a_signal_to_the_monitor(world: World, name: str) -> None:
    with inside(world, "sh", "-c", "echo ready; exec sleep 1000") as terminal:
        before = comparable(terminal.before)
        terminal.expect("ready\r\n")
        terminal.process.send_signal(signal.Signals[f"SIG{name}"])
        assert terminal.end() == 128 + signal.Signals[f"SIG{name}"]
        assert comparable(terminal.settings()) == before


def test_the_terminal_is_restored_when_the_command_is_killed_in_raw_mode(world: World) -> None:
    """The command's own settings are those of its own terminal."""
    with inside(world, "sh", "-c", "stty raw -echo; echo ready; kill -KILL $$") as terminal:
        before = comparable(terminal.before)
        assert terminal.end() == 128 + signal.SIGKILL
        assert comparable(terminal.settings()) == before


def test_a_flood_of_output_loses_nothing(world: World) -> None:
    with inside(world, "seq", "1", "300000") as terminal:
        assert terminal.end() == 0
    assert terminal.screen == b"".join(b"%d\r\n" % number for number in range(1, 300001))


def test_a_slow_reader_loses_nothing(world: World) -> None:
    """The command has ended, and what it wrote last still waits in its terminal."""
    for _ in range(5):
        with inside(world, "sh", "-c", "seq 1 900") as terminal:
            # Reading starts when the command is long done: the monitor waits for the terminal to take the rest.
            os.waitid(os.P_PID, terminal.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            assert terminal.end() == 0
        assert terminal.screen == b"".join(b"%d\r\n" % number for number in range(1, 901))


def test_a_terminal_that_goes_away_is_a_hangup(world: World) -> None:
    flag = world.tmp / "work"
    flag.mkdir()
    world.own(flag)
    waiting = "trap 'echo hung up >flag; exit 1' HUP; echo ready; while :; do sleep 0.02; done"
    command = world.osmoda_argv(
        "run", "--tier", "2", "--workspace-mode", "direct", "--workspace", flag, "--", "sh", "-c", waiting
    )
    terminal = Terminal(world, command)
    try:
        terminal.expect("ready\r\n")
    finally:
        os.close(terminal.master)
    assert terminal.process.wait(20) in (1, 128 + signal.SIGHUP)
    assert (flag / "flag").read_text() == "hung up\n"


def test_tier_0_keeps_the_callers_terminal(world: World) -> None:
    with Terminal(world, world.osmoda_argv("run", "--tier", "0", "--", "tty")) as terminal:
        path = os.ptsname(terminal.master) if hasattr(os, "ptsname") else ""
        assert terminal.end() == 0
    assert terminal.screen.startswith(b"/dev/pts/")
    assert not path or terminal.screen.decode().strip() == path
