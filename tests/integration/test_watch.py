"""`osmoda-watch`: a real daemon, real sandboxes, what goes wrong in them, and what is seen of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from tests.watched import PYTHON, Watch, eventually

# A daemon is the same for both: each test but the first one is made as one of them.
AS_ROOT = pytest.mark.parametrize("world", ["root"], indirect=True)
AS_USER = pytest.mark.parametrize("world", ["user"], indirect=True)

SLEEPER = "import time\nprint('up', flush=True)\ntime.sleep(1000)\n"


def test_an_agent_from_start_to_stop(watch: Watch) -> None:
    watch.unit("agent", ExecStart=watch.program("agent", SLEEPER), Restart="always", RestartSec=0)
    watch.up()
    watch.do("start", "agent")
    first = watch.status("agent")
    assert (first["state"], first["sub"], first["tier"], first["restarts"]) == ("active", "running", 1, 0)
    assert first["tasks"] >= 2  # pid 1 of its sandbox, and itself
    watch.wait_for_line("agent", "up")
    text = watch.do("status", "agent")
    assert text.startswith("● agent.service")
    assert "Active: active (running) since " in text
    assert "\x1b" not in text

    os.kill(first["pid"], signal.SIGKILL)
    again = watch.wait_for("agent", state="active", restarts=1)
    assert again["pid"] != first["pid"]
    assert not Path(f"/proc/{first['pid']}").exists()
    watch.wait_for_line("agent", "up", 2)

    watch.do("stop", "agent")
    assert watch.processes() == {}
    stopped = watch.run("status", "agent")
    assert (stopped.returncode, stopped.stdout[0]) == (3, "○")
    assert "its program was ended by SIGTERM" in watch.lines("agent")
    assert watch.run("status", "other").returncode == 4


@AS_ROOT
def test_what_cannot_be_enforced_does_not_start_and_does_no_harm_to_others(watch: Watch) -> None:
    good = watch.program("good", SLEEPER)
    watch.unit("good", ExecStart=good)
    watch.unit("unknown", ExecStart=good, RestartPolicy="always")
    watch.unit("unprofiled", ExecStart=good, section="Profile=/nowhere/agent.toml")
    watch.unit("above", ExecStart=good, section="Tier=0")
    watch.unit("circle1", unit="After=circle2.service\nWants=circle2.service", ExecStart=good)
    watch.unit("circle2", unit="After=circle1.service", ExecStart=good)
    watch.unit("lonely", unit="Requires=missing.service\nAfter=missing.service", ExecStart=good)
    watch.up()
    result = watch.run("start", "unknown", "good", "unprofiled", "lonely")
    assert result.returncode == 1
    errors = result.stderr.splitlines()
    assert len(errors) == 3
    assert f"{watch.units}/unknown.service:6: RestartPolicy= is no directive of [Service]" in result.stderr
    assert any(f"{watch.units}/unprofiled.service:7" in line and "/nowhere/agent.toml" in line for line in errors)
    assert any(f"{watch.units}/lonely.service:2: it requires missing.service" in line for line in errors)
    assert watch.status("good")["state"] == "active"
    assert len(watch.processes()) == 1
    circle = watch.run("start", "circle1")
    assert circle.returncode != 0
    assert "goes in a circle" in circle.stderr
    assert f"{watch.units}/circle1.service:2" in circle.stderr
    assert f"{watch.units}/circle2.service:2" in circle.stderr
    # The daemon's own log has it, too.
    assert any("RestartPolicy=" in line for line in watch.lines("unknown"))


@AS_USER
def test_a_broken_edit_leaves_what_runs_alone(watch: Watch) -> None:
    watch.unit("agent", ExecStart=watch.program("agent", SLEEPER))
    watch.up()
    watch.do("start", "agent")
    pid = watch.status("agent")["pid"]
    watch.unit("agent", ExecStart=f"{PYTHON} main.py", Restart="sometimes")
    result = watch.run("restart", "agent")
    assert result.returncode == 1
    assert "agent.service:6" in result.stderr
    assert watch.status("agent")["pid"] == pid
    checked = watch.run("check", "--units", watch.units, "agent")
    assert (checked.returncode, checked.stdout) == (1, "")
    assert "agent.service:6" in checked.stderr
    watch.unit("agent", ExecStart=f"{PYTHON} main.py", Restart="always")
    watch.do("restart", "agent")
    assert watch.status("agent")["pid"] != pid
    assert "it can run; tier 1" in watch.do("check", "--units", watch.units, "agent")


@AS_ROOT
def test_the_start_limit_triggers_and_is_lifted(watch: Watch) -> None:
    program = watch.program("crashing", "raise SystemExit(7)")
    limit = "StartLimitBurst=3\nStartLimitIntervalSec=1h"
    watch.unit("crashing", unit=limit, ExecStart=program, Restart="always", RestartSec="1ms")
    watch.up()
    watch.do("start", "crashing")
    failed = watch.wait_for("crashing", state="failed")
    assert failed["result"] == "start-limit-hit"
    lines = watch.lines("crashing")
    assert lines.count("its program exited with 7") == 3
    assert any(f"({watch.units}/crashing.service:2); `osmoda-watch reset-failed" in line for line in lines)
    refused = watch.run("start", "crashing")
    assert refused.returncode == 1
    assert "3 times within 3600 s" in refused.stderr
    watch.do("reset-failed", "crashing")
    watch.program("crashing", SLEEPER)
    watch.do("start", "crashing")
    assert watch.status("crashing")["state"] == "active"


@pytest.mark.orphans  # what a killed daemon leaves to init
@AS_ROOT
def test_a_killed_daemon_takes_its_agents_along_and_the_next_starts_each_once(watch: Watch) -> None:
    for name in ("one", "two", "three"):
        watch.unit(name, ExecStart=watch.program(name, SLEEPER), Restart="always", RestartSec=0)
    watch.up()
    watch.do("start", "one", "two", "three")
    watch.do("stop", "three")
    before = watch.processes()
    assert len(before) == 2
    second = watch.run("daemon", "--units", watch.units)
    assert second.returncode == 125
    assert "a daemon of this user runs already" in second.stderr

    watch.down(signal.SIGKILL)
    watch.up()
    eventually(lambda: all(watch.status(name)["state"] == "active" for name in ("one", "two")), "both were up again")
    after = watch.processes()
    assert len(after) == 2
    assert not {*before} & {*after}
    assert watch.run("status", "three").returncode == 3

    watch.down()
    assert watch.processes() == {}
    assert watch.run("start", "one").returncode == 125  # there is no daemon to ask


@AS_ROOT
def test_a_flood_is_counted_and_others_are_served_meanwhile(watch: Watch) -> None:
    flood = (
        "import os\nfor _ in range(300): os.write(1, b'flood\\n' * 1000)\nprint('end', flush=True)\nwhile True: pass"
    )
    watch.unit("flooding", ExecStart=watch.program("flooding", flood), CPUQuota="50%")
    watch.unit("quiet", ExecStart=watch.program("quiet", SLEEPER))
    watch.up()
    watch.do("start", "flooding")
    watch.do("start", "quiet")
    watch.wait_for_line("quiet", "up")
    watch.wait_for_line("flooding", "it prints more than 10000 lines within 30 s")
    watch.do("stop", "flooding")
    lines = watch.lines("flooding")
    # More than once the limit where all of that has taken longer than the time that it is for.
    assert lines.count("flood") == 10_000 * sum("it prints more than 10000 lines" in line for line in lines)
    assert "end" not in lines


CHECKED = """
import http.server, signal, threading, time

hangs = threading.Event()
signal.signal(signal.SIGUSR1, lambda *_: hangs.set())

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if hangs.is_set():
            time.sleep(1000)
        self.send_response(200 if self.path == "/health" else 500)
        self.end_headers()

http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
"""


@AS_USER
def test_health_checks_that_hang_restart_their_agent_and_no_other(watch: Watch) -> None:
    section = "HealthInterval=50ms\nHealthRetries=2\nHealthStartPeriod=30s"
    options = {"ExecStart": watch.program("hanging", CHECKED), "Restart": "always", "RestartSec": 0}
    watch.unit("hanging", section=f"HealthCheck=http://:8080/health\nHealthTimeout=3s\n{section}", **options)
    options["ExecStart"] = watch.program("fine", CHECKED)
    # That one answers in time, however busy the machine is.
    checks = "HealthCheck=tcp:8080\nHealthCheck=exec:/bin/test -e main.py\nHealthTimeout=1min"
    watch.unit("fine", section=f"{checks}\n{section}", **options)
    watch.up()
    watch.do("start", "hanging", "fine")
    pid = watch.wait_for("fine", health="healthy")["pid"]
    hanging = watch.wait_for("hanging", health="healthy")["pid"]
    os.kill(hanging, signal.SIGUSR1)
    watch.wait_for_line("hanging", "it is unhealthy: http http://:8080/health: no answer within 3 s")
    assert watch.wait_for("hanging", health="healthy", state="active")["restarts"] >= 1
    fine = watch.status("fine")
    assert (fine["pid"], fine["restarts"], fine["health"]) == (pid, 0, "healthy")


NOTIFYING = """
import os, signal, socket, time

def say(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.connect(os.environ["NOTIFY_SOCKET"])
        one.send(text.encode())

def reload(*_):
    say("STATUS=reloaded")
hangs = []
signal.signal(signal.SIGHUP, reload)
signal.signal(signal.SIGUSR1, lambda *_: hangs.append(1))
assert os.environ["WATCHDOG_USEC"] == "8000000"
say("READY=1\\nSTATUS=working")
while not hangs:
    say("WATCHDOG=1")
    time.sleep(0.05)
while True:
    time.sleep(1000)
"""


@AS_USER
def test_a_service_that_notifies_is_reloaded_and_watched(watch: Watch) -> None:
    watch.unit(
        "notifying",
        Type="notify",
        ExecStart=watch.program("notifying", NOTIFYING),
        ExecReload="/bin/kill -HUP $MAINPID",
        WatchdogSec=8,  # longer than a busy machine keeps it from speaking
        Restart="on-watchdog",
        RestartSec=0,
    )
    watch.up()
    watch.do("start", "notifying")
    assert watch.status("notifying")["says"] == "working"
    watch.do("reload", "notifying")
    watch.wait_for("notifying", says="reloaded")
    os.kill(watch.status("notifying")["pid"], signal.SIGUSR1)
    watch.wait_for_line("notifying", "it has not been heard of for 8 s (WatchdogSec=): it is aborted")
    watch.wait_for("notifying", state="active", restarts=1)


@AS_USER
def test_dependencies_start_in_order_and_stop_together(watch: Watch) -> None:
    slow = "import time\ntime.sleep(0.2)\n"
    watch.unit("base", Type="oneshot", RemainAfterExit="yes", ExecStart=watch.program("base", slow))
    needs = "Requires=base.service\nAfter=base.service"
    watch.unit("upper", unit=needs, ExecStart=watch.program("upper", SLEEPER))
    watch.unit("bound", unit="BindsTo=upper.service\nAfter=upper.service", ExecStart=watch.program("bound", SLEEPER))
    watch.up()
    watch.do("start", "bound")
    since = [watch.status(name) for name in ("base", "upper", "bound")]
    assert [one["state"] for one in since] == ["active"] * 3
    assert since[0]["sub"] == "exited"
    assert since[0]["since"] <= since[1]["since"] <= since[2]["since"]
    # What is bound goes when the other one goes, however that was.
    os.kill(since[1]["pid"], signal.SIGKILL)
    watch.wait_for("bound", state="inactive")
    watch.do("start", "bound")
    watch.do("stop", "base")
    assert [watch.status(name)["state"] for name in ("base", "upper", "bound")] == ["inactive"] * 3
    assert watch.processes() == {}


SERVED = """
import os, socket
assert os.environ["LISTEN_FDS"] == "1" and os.environ["LISTEN_PID"] == str(os.getpid())
with socket.socket(fileno=3) as listener:
    connection, _ = listener.accept()
    connection.sendall(b"served by " + os.environ["LISTEN_FDNAMES"].encode())
    connection.close()
"""


@AS_USER
def test_the_first_connection_starts_a_service(watch: Watch) -> None:
    path = watch.world.tmp / "front.sock"
    watch.file("front.socket", f"[Socket]\nListenStream={path}\n")
    watch.unit("front", ExecStart=watch.program("front", SERVED))
    watch.up()
    watch.do("start", "front.socket")
    assert watch.processes() == {}
    for number in range(1, 3):  # it serves one connection, ends, and is started by the next
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(30)
            client.connect(str(path))
            assert client.recv(100) == b"served by front.socket"
        watch.wait_for_line("front", "its program exited with 0", number)
    listed = {one["unit"]: one for one in json.loads(watch.do("list", "--json"))}
    assert listed["front.socket"]["state"] == "active"


@AS_USER
def test_commands_around_the_program_and_the_files_of_its_environment(watch: Watch) -> None:
    watch.folder("around")
    (watch.world.tmp / "variables").write_text("# a comment\nGREETING='hello world'\n")
    watch.world.own(watch.world.tmp / "variables")
    watch.unit(
        "around",
        EnvironmentFile=watch.world.tmp / "variables",
        ExecStartPre="/bin/echo before ${GREETING}",
        ExecStart=f"{PYTHON} -c \"import os, sys; print('main', *sys.argv[1:]); sys.exit(3)\" $GREETING",
        ExecStopPost="/bin/sh -c 'echo after $SERVICE_RESULT $EXIT_CODE $EXIT_STATUS'",
        SuccessExitStatus=4,
    )
    watch.up()
    watch.do("start", "around")
    watch.wait_for("around", state="failed", result="exit-code")
    assert [line for line in watch.lines("around") if line.split()[0] in ("before", "main", "after")] == [
        "before hello world",
        "main hello world",
        "after exit-code exited 3",
    ]


@AS_USER
def test_the_logs_are_for_people_and_for_programs(watch: Watch) -> None:
    nasty = "import sys\nprint('\\x1b[31mred\\x07', flush=True)\nprint('to stderr', file=sys.stderr)\n"
    watch.unit("printing", ExecStart=watch.program("printing", nasty))
    watch.unit("other", ExecStart=watch.program("other", "print('of another')"))
    watch.up()
    watch.do("start", "printing", "other")
    for name, part in (("printing", "red"), ("printing", "to stderr"), ("other", "of another")):
        watch.wait_for_line(name, part)
    for name in ("printing", "other"):
        watch.wait_for_line(name, "its program exited with 0")  # from then on there is nothing new
    shown = watch.do("logs", "printing")
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\\x1b[31mred\\x07" in shown
    assert "printing.service" in shown
    records = [json.loads(line) for line in watch.do("logs", "--json", "printing").splitlines()]
    assert {"stdout", "stderr", "watch"} == {record["stream"] for record in records}
    assert any(record["text"] == "\x1b[31mred\x07" for record in records)
    # Without a name all of them, one line each, to be searched.
    assert any("other.service[" in line and "of another" in line for line in watch.do("logs").splitlines())
    assert len(watch.do("logs", "-n", "2").splitlines()) == 2
    assert watch.do("logs", "--since", "1h") == watch.do("logs")
    assert watch.run("logs", "never").returncode == 125


@AS_USER
def test_a_group_that_keeps_failing_is_stopped(watch: Watch) -> None:
    section = "RestartGroup=team 3/1h"
    unit = "StartLimitIntervalSec=0"
    crash = watch.program("crashing", "raise SystemExit(1)")
    watch.unit("crashing", unit=unit, section=section, ExecStart=crash, Restart="always", RestartSec="1ms")
    steady = watch.program("steady", SLEEPER)
    watch.unit("steady", unit=unit, section=section, ExecStart=steady, Restart="always", RestartSec="1ms")
    watch.up()
    watch.do("start", "steady")
    watch.do("start", "crashing")
    watch.wait_for("crashing", state="failed", result="start-limit-hit")
    watch.wait_for("steady", state="failed", result="start-limit-hit")
    assert any("group team is stopped: its members were restarted 3 times" in line for line in watch.lines("steady"))


@pytest.mark.orphans  # sandboxes whose launcher is killed
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@AS_ROOT
def test_a_launcher_that_is_killed_costs_a_restart(watch: Watch, number: int) -> None:
    """The process that keeps all sandboxes is a part of the daemon that can be lost."""
    watch.unit("agent", ExecStart=watch.program("agent", SLEEPER), Restart="always", RestartSec="10ms")
    watch.up()
    watch.do("start", "agent")
    assert watch.process is not None
    (pid,) = launchers(watch.process.pid)
    os.kill(pid, number)
    if number == signal.SIGKILL:
        watch.wait_for("agent", state="active", restarts=1)
    eventually(lambda: len(watch.processes()) == 1, "there was one agent")


def launchers(daemon: int) -> list[int]:
    found = []
    for pid in Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split():
        with contextlib.suppress(OSError):  # another child, which has just ended
            if b"sandbox.launcher" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


@AS_ROOT
def test_what_is_enabled_starts_with_the_daemon_unless_somebody_stopped_it(watch: Watch) -> None:
    for name in ("enabled", "plain"):
        watch.unit(name, ExecStart=watch.program(name, SLEEPER))
        path = watch.units / f"{name}.service"
        path.write_text(path.read_text() + "[Install]\nWantedBy=multi-user.target\n")
    made = watch.do("enable", "--units", watch.units, "enabled")
    link = watch.units / "multi-user.target.wants" / "enabled.service"
    assert made == f"created {link} → {watch.units}/enabled.service\n"
    watch.up()
    watch.wait_for("enabled", state="active")
    assert watch.run("status", "plain").returncode == 3
    listed = {one["unit"]: one for one in json.loads(watch.do("list", "--json"))}
    assert {name: listed[f"{name}.service"]["enabled"] for name in ("enabled", "plain")} == {
        "enabled": "yes",
        "plain": "no",
    }
    watch.do("start", "plain")
    watch.do("stop", "enabled")
    watch.down()
    watch.up()
    watch.wait_for("plain", state="active")
    assert watch.run("status", "enabled").returncode == 3
    watch.do("disable", "--units", watch.units, "enabled")
    assert not link.exists()


@AS_USER
def test_unit_files_are_read_again_when_somebody_says_so(watch: Watch) -> None:
    watch.unit("agent", unit="Description=Before", ExecStart=watch.program("agent", SLEEPER), Restart="always")
    watch.up()
    watch.do("start", "agent")
    pid = watch.status("agent")["pid"]
    watch.unit("agent", unit="Description=After", ExecStart=f"{PYTHON} main.py", Restart="no")
    assert watch.status("agent")["description"] == "Before"
    watch.do("daemon-reload")
    after = watch.status("agent")
    assert (after["description"], after["pid"]) == ("After", pid)
    os.kill(pid, signal.SIGKILL)
    watch.wait_for("agent", state="failed", result="signal")  # Restart=no is what it says now
    # The same by a signal; a file that is broken meanwhile changes nothing.
    watch.unit("agent", unit="Description=Broken", ExecStart=f"{PYTHON} main.py", Restart="perhaps")
    assert watch.process is not None
    watch.process.send_signal(signal.SIGHUP)
    watch.wait_for_line("agent", "it stays as it was read before: ")
    assert watch.status("agent")["description"] == "After"


@AS_ROOT
def test_a_pool_serves_restarts(watch: Watch) -> None:
    options = {"ExecStart": watch.program("pooled", SLEEPER), "Restart": "always", "RestartSec": 0}
    watch.unit("pooled", section="Pool=1", **options)
    watch.up()
    watch.do("start", "pooled")
    for restarts in range(1, 4):
        pid = watch.status("pooled")["pid"]
        os.kill(pid, signal.SIGKILL)
        watch.wait_for("pooled", state="active", restarts=restarts)
        assert not Path(f"/proc/{pid}").exists()
        assert len(watch.processes("pooled")) == 1
    watch.do("stop", "pooled")
    assert watch.processes() == {}


REACHING = """
import socket, sys
for path in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.connect(path)
            print("REACHED", path, flush=True)
        except OSError as error:
            print("refused", error.strerror, flush=True)
"""


@AS_USER
def test_no_agent_gives_orders_to_its_supervisor(watch: Watch) -> None:
    """Attacks the control socket from a sandbox; the file system it does not show is the layer that stops it."""
    watch.up()
    runtime = watch.directory("runtime").parent
    path = f"{runtime}/watch/control"
    control = watch.world.run([PYTHON, "-c", REACHING, path], check=True).stdout
    assert control == f"REACHED {path}\n"  # outside it can be reached
    watch.unit("reaching", ExecStart=f"{watch.program('reaching', REACHING)} {path}")
    watch.do("start", "reaching")
    assert watch.wait_for_line("reaching", "refused") == "refused No such file or directory"
    # Nor where a profile shows it the folder: a read-only overlay has no socket of the host's to connect to.
    program = f"{watch.program('granted', REACHING)} {path}"
    watch.unit("granted", ExecStart=program, section=f"Profile={watch.world.tmp}/granted.toml")
    profile = watch.world.tmp / "granted.toml"
    shown = f'read = ["{runtime}", "{watch.folder("granted")}"]'
    profile.write_text(f"schema = 1\ntier = 1\n[filesystem]\n{shown}\n")
    watch.world.own(profile)
    watch.do("start", "granted")
    assert watch.wait_for_line("granted", "refused") == "refused Connection refused"


FOUND = """
import sys
from osmoda.supervisor.daemon import remains
print(*remains.marked(sys.argv[1]), *remains._sandboxes(int(sys.argv[2]), ending=False))
"""


def test_all_that_a_daemon_has_started_can_be_found_by_the_next_one(watch: Watch) -> None:
    """The first processes of sandboxes above all: who waits for these waits for all that is inside."""
    watch.unit("agent", ExecStart=watch.program("agent", SLEEPER))
    watch.up()
    watch.do("start", "agent")
    runtime = watch.directory("runtime").parent
    assert watch.process is not None
    words = (f"{runtime}/watch", str(watch.process.pid))
    found = {*map(int, watch.world.python(FOUND, *words, check=True).stdout.split())}
    agent = watch.status("agent")["pid"]
    init = int(Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[1])
    assert {init, *launchers(watch.process.pid)} <= found
    assert agent not in found  # its environment is its own
