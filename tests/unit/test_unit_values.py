"""Values of directives; systemd's own tools are asked where this machine has them."""

from __future__ import annotations

import math
import re
import shutil
import signal
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.supervisor.units import values

SPANS = (
    *("0", "5", "90s", "1.5", "5min 20s", "2h", "1h30min", "1 month", "1M", "1m", "2weeks", "3 days", "1y 1ms", "7us"),
    *("0.1", ".5", "1.", "12.34.56", "12.34 .56", "12.34s.56", "+5", "-1", "- 1", "5 6", "5,5", "s", "infinity"),
    *("infinity 1", "Infinity", "1e3", "0x10", "10 fortnights", "1hr", "1 hour", "1 hours", "3sec4sec", "1\u00b5s"),
    *("1\u03bcs", "0.000001", "0.0000001", "1.999999us", "9223372036854775807us", "99999999999999999999"),
    *("292471 years", "600000 years", "9223372036854775808us"),
)


@pytest.mark.parametrize("text", ["1", "yes", "Y", "TRUE", "t", "on"])
def test_yes(text):
    assert values.boolean(text) is True


@pytest.mark.parametrize("text", ["0", "no", "N", "FALSE", "f", "off"])
def test_no(text):
    assert values.boolean(text) is False


@pytest.mark.parametrize("text", ["", "2", "maybe", " yes", "ye"])
def test_neither(text):
    with pytest.raises(ValueError, match="neither yes nor no"):
        values.boolean(text)


def test_times():
    assert values.seconds("5min 20s") == 320
    assert values.seconds("1.5") == 1.5
    assert values.seconds("100ms") == 0.1
    assert values.seconds("infinity") == math.inf


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("text", SPANS)
def test_times_are_those_of_systemd(text):
    command = ["systemd-analyze", "timespan", "--", text]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    says = re.search(r"^\s*[μu]s: (\d+)$", done.stdout, re.MULTILINE)
    try:
        ours = values.microseconds(text)
    except ValueError:
        assert done.returncode != 0, done.stdout
    else:
        assert done.returncode == 0, done.stderr
        # Later versions say it in words.
        assert "infinity" in done.stdout if ours is None else says is None or int(says[1]) == ours


@given(st.integers(0, 10**15))
def test_a_number_of_microseconds(number):
    assert values.microseconds(f"{number}us") == number
    assert values.microseconds(f"{number // 1000000}s {number % 1000000}us") == number


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_exit_statuses_are_those_of_systemd():
    done = subprocess.run(["systemd-analyze", "exit-status"], capture_output=True, text=True, check=True, timeout=30)
    found = {name: int(number) for name, number in re.findall(r"^(\S+) +(\d+) \S+ *$", done.stdout, re.MULTILINE)}
    assert len(found) > 50
    # A newer systemd may have more.
    assert found | values.EXIT_STATUSES == found


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("255", 255), ("TEMPFAIL", 75), ("0x10", 16)])
def test_exit_status(text, number):
    assert values.exit_status(text) == number


@pytest.mark.parametrize("text", ["256", "-1", "tempfail", ""])
def test_no_exit_status(text):
    with pytest.raises(ValueError, match=r"is no number|is above 255"):
        values.exit_status(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *[("TERM", 15), ("SIGKILL", 9), ("9", 9), ("IO", 29), ("CHLD", 17), ("SIGSTKFLT", 16), ("SYS", 31)],
        *[("RTMIN", signal.SIGRTMIN), ("SIGRTMIN+3", signal.SIGRTMIN + 3), ("RTMAX-1", signal.SIGRTMAX - 1)],
    ],
)
def test_signals(text, number):
    assert values.signal_number(text) == number


def test_the_numbers_of_signals_are_the_kernel_s():
    names = {one.name.removeprefix("SIG"): int(one) for one in signal.Signals}
    assert values.signal_number("ABRT") == signal.SIGABRT
    assert all(values.signal_number(name) == names[name] for name in ("HUP", "USR2", "XFSZ", "WINCH", "PWR"))


@pytest.mark.parametrize(
    "text", ["", "term", "SIG_DFL", "POLL", "0", "65", "SIGSIGTERM", "RTMIN-1", "RTMAX+1", "RTMIN+31"]
)
def test_no_signal(text):
    with pytest.raises(ValueError, match="is no signal"):
        values.signal_number(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [("512M", 512 << 20), ("1.5G", 3 << 29), ("0", 0), ("4096", 4096), ("1 T", 1 << 40), ("2EB", 2 << 60)],
)
def test_sizes(text, found):
    assert values.size(text) == found


@pytest.mark.parametrize("text", ["", "M", "-1", "1X", "50%", "16E", "1.G"])
def test_no_size(text):
    with pytest.raises(ValueError, match=r"is no size|is larger"):
        values.size(text)


@pytest.mark.parametrize(("text", "found"), [("0", 0), ("7", 7), ("0x1F", 31), ("0b11", 3), ("017", 15), ("0o17", 15)])
def test_numbers(text, found):
    assert values.unsigned(text) == found


@pytest.mark.parametrize("text", ["", "-1", "4294967296", "08", "1_000", "\u0661", "0x"])
def test_no_number(text):
    with pytest.raises(ValueError, match=r"is no number|is above"):
        values.unsigned(text)


def test_modes():
    assert values.mode("0640") == 0o640
    with pytest.raises(ValueError, match="octal"):
        values.mode("0689")
    with pytest.raises(ValueError, match="octal"):
        values.mode("17777")


def test_paths():
    assert values.absolute_path("//a/./b//c/") == "/a/b/c"
    assert values.absolute_path("/") == "/"
    for path, says in (("a", "absolute"), ("/a/../b", r"\.\."), ("/a\nb", "control"), ("/" + "a" * 256, "longer")):
        with pytest.raises(ValueError, match=says):
            values.absolute_path(path)


@pytest.mark.parametrize("text", ["agent", "_apt", "1000", "0", "a.b", "Domain User", "systemd-oom"])
def test_accounts(text):
    assert values.account(text) == text


@pytest.mark.parametrize("text", ["", "a:b", "a/b", "65535", "4294967295", "007", ".", "-a", " a", "a\n"])
def test_no_account(text):
    with pytest.raises(ValueError, match="is no user or group"):
        values.account(text)


def test_names_of_units():
    name = values.unit_name("a-b@c@d.service")
    assert (name.prefix, name.instance, name.suffix) == ("a-b", "c@d", ".service")
    assert name.template == "a-b@.service"
    assert values.unit_name("x.target").instance is None
    assert values.unit_name("x@.service").instance == ""


@pytest.mark.parametrize(
    "text", ["", "a", ".service", "@a.service", "a b.service", "a/b.service", "\u00e4.service", "a" * 250 + ".service"]
)
def test_no_name_of_a_unit(text):
    with pytest.raises(ValueError, match="is no name of a unit"):
        values.unit_name(text)
