"""Scenarios of osmoda's engine for systemd alone: what keeps a unit in its sandbox, and what a person sees."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from osmoda.supervisor.systemd import files as systemd_files
from tests.parity.commands import KEEPS_RUNNING
from tests.parity.plain import UNITS
from tests.parity.stage import Stage

SEEDS = Path(__file__).with_name("seed_units")
COMMAND = str(Path(sys.executable).with_name("osmoda-watch"))
# Says whether it is in a sandbox: there its pid is a small one.
SAYS_WHERE = "Type=oneshot\nExecStart=/bin/sh -c '[ $$$$ -lt 10 ] && echo inside >>trace || echo outside >>trace'\n"


def _systemctl(*words: str) -> bool:
    return subprocess.run(["systemctl", *words], capture_output=True, check=False).returncode == 0


def _watch(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *words], capture_output=True, text=True, timeout=60, check=False)


def systemd_itself_starts_a_confined_unit_in_its_sandbox(stage: Stage) -> None:
    stage.service(SAYS_WHERE)
    # The control: without its drop-in it is not.
    assert _systemctl("daemon-reload")
    assert _systemctl("start", "alpha.service")
    assert stage.trace() == ["outside"]
    assert _watch("systemd", "check").returncode == 1
    assert stage.start("alpha.service")
    assert _systemctl("start", "alpha.service")
    assert stage.trace() == ["outside", "inside", "inside"]
    checked = _watch("systemd", "check")
    assert (checked.returncode, checked.stdout) == (0, "alpha.service: systemd runs it in its sandbox\n")


def a_unit_that_was_changed_since_does_not_start_outside(stage: Stage) -> None:
    stage.service(SAYS_WHERE)
    assert stage.start("alpha.service")
    stage.service(SAYS_WHERE + "ExecStart=/bin/sh -c 'echo another >>trace'\n")
    assert _systemctl("daemon-reload")
    assert not _systemctl("start", "alpha.service")
    assert stage.state("alpha.service").code == 125
    assert stage.trace() == ["inside"]
    assert stage.start("alpha.service")
    assert stage.trace() == ["inside", "inside", "another"]


def a_drop_in_after_it_is_refused(stage: Stage) -> None:
    stage.service(SAYS_WHERE)
    assert stage.start("alpha.service")
    stage.unit(
        "alpha.service.d/zzzz.conf", "[Service]\nExecStart=\nExecStart=/bin/sh -c 'echo around it >>@dir@/trace'\n"
    )
    assert not stage.start("alpha.service")
    assert stage.trace() == ["inside"]
    checked = _watch("systemd", "check")
    assert checked.returncode == 1
    assert str(UNITS / "alpha.service.d/zzzz.conf") in checked.stderr


def a_variable_that_would_change_the_interpreter_is_the_agents_alone(stage: Stage) -> None:
    stage.file("sitecustomize.py", "open('/tmp/loaded', 'w')\n")
    stage.file("variables", "PYTHONPATH=@dir@\nPYTHONHOME=@dir@\nLD_PRELOAD=@dir@/evil.so\n")
    stage.service("EnvironmentFile=@dir@/variables\nType=oneshot\nExecStart=/bin/sh -c 'echo $PYTHONPATH >>trace'\n")
    assert stage.start("alpha.service")
    assert stage.trace() == [str(stage.folder)]
    assert not Path("/tmp/loaded").exists()


def a_unit_that_is_released_runs_outside(stage: Stage) -> None:
    stage.service(SAYS_WHERE)
    assert stage.start("alpha.service")
    assert _watch("systemd", "remove", "alpha").returncode == 0
    assert systemd_files.confined() == []
    assert _systemctl("start", "alpha.service")
    assert stage.trace() == ["inside", "outside"]


def what_is_pulled_in_and_is_an_agent_is_confined_too(stage: Stage) -> None:
    stage.service(SAYS_WHERE, name="beta.service")
    stage.service(SAYS_WHERE, unit="Requires=beta.service\nAfter=beta.service\n")
    assert stage.start("alpha.service")
    assert stage.trace() == ["inside", "inside"]
    assert systemd_files.confined() == ["alpha.service", "beta.service"]


def what_cannot_be_confined_does_not_start(stage: Stage) -> None:
    stage.service("MemoryDenyWriteExecute=yes\n" + SAYS_WHERE)
    done = _watch("start", "alpha")
    assert done.returncode == 1
    assert f"{UNITS}/alpha.service:5: MemoryDenyWriteExecute=yes cannot be enforced" in done.stderr, done.stderr
    assert stage.trace() == []


def status_list_and_logs_are_of_the_unit_in_systemd(stage: Stage) -> None:
    stage.service("", program=f"echo hello from inside\n{KEEPS_RUNNING}")
    assert _watch("start", "alpha").returncode == 0
    stage.until_trace("run")
    shown = _watch("status", "alpha")
    assert shown.returncode == 0, shown.stderr
    (found,) = json.loads(_watch("status", "alpha", "--json").stdout)
    assert (found["state"], found["sub"], found["tier"]) == ("active", "running", 1)
    assert found["profile"] == str(stage.profile)
    listed = _watch("list")
    assert listed.stdout.splitlines()[1].split()[:4] == ["alpha.service", "active", "running", "1"]
    stage.until(lambda: "hello from inside" in _watch("logs", "alpha").stdout, lambda: _watch("logs", "alpha"))
    assert _watch("stop", "alpha").returncode == 0
    stopped = _watch("status", "alpha")
    assert stopped.returncode == 3
    assert "inactive (dead)" in stopped.stdout


def an_enabled_unit_is_linked_and_stays_confined(stage: Stage) -> None:
    stage.service("", program=KEEPS_RUNNING)
    stage.unit("alpha.service.d/install.conf", "[Install]\nWantedBy=multi-user.target\n")
    done = _watch("enable", "alpha")
    link = Path("/etc/systemd/system/multi-user.target.wants/alpha.service")
    assert (done.returncode, link.is_symlink()) == (0, True), done.stderr
    assert systemd_files.confined() == ["alpha.service"]
    assert _watch("disable", "alpha").returncode == 0
    assert not link.is_symlink()
    assert systemd_files.confined() == ["alpha.service"]


def the_seed_units_run_as_they_stand(stage: Stage) -> None:
    # The container's root is an overlay, which knows no idmapped mounts.
    Path("/opt/agents").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/opt/agents"], check=True)
    program = 'import time\nprint("it runs", flush=True)\nwhile True:\n    time.sleep(1000)\n'
    for agent in ("research", "writer"):
        home = Path("/opt/agents") / agent
        (home / ".venv/bin").mkdir(parents=True)
        (home / ".venv/bin/python").symlink_to("/usr/bin/python3")
        (home / ".env").write_text("OPENAI_API_KEY=nothing\n")
        (home / "main.py").write_text(program)
        UNITS.mkdir(exist_ok=True)
        stage.unit(f"{agent}-agent.service", (SEEDS / f"{agent}-agent.service").read_text())
    try:
        done = _watch("start", "research-agent", "writer-agent")
        assert done.returncode == 0, done.stderr
        stage.signal("research-agent.service", 9)
        stage.until(lambda: stage.state("research-agent.service").restarts == 1, lambda: stage.state("research-agent"))
        stage.until_state("active", "running", "research-agent.service")
        stage.until(lambda: _watch("logs", "research-agent").stdout.count("it runs") == 2, lambda: _watch("logs"))
        for words in (("status", "research-agent"), ("list",), ("logs", "research-agent")):
            print(f"$ osmoda-watch {' '.join(words)}\n{_watch(*words).stdout}", flush=True)
    finally:
        _watch("stop", "research-agent", "writer-agent")
        subprocess.run(["umount", "--lazy", "/opt/agents"], check=True)


def what_is_done_is_on_the_ledger(stage: Stage) -> None:
    ledger = str(Path(COMMAND).with_name("osmoda-ledger"))
    subprocess.run([ledger, "init"], check=True, capture_output=True, timeout=60)
    try:
        stage.service("Type=oneshot\nExecStart=-/usr/bin/unshare --user true\n")
        assert stage.start("alpha.service")
        shown = subprocess.run(
            [ledger, "show", "-n", "0", "--json"], capture_output=True, text=True, timeout=60, check=True
        )
        for kind in ("start", "launch", "denial", "end"):
            assert f'"{kind}"' in shown.stdout, (kind, shown.stdout)
        assert "alpha.service" in shown.stdout
        stage.until(lambda: "unshare" in _watch("logs", "alpha").stdout, lambda: _watch("logs", "alpha"))
        subprocess.run([ledger, "verify"], check=True, capture_output=True, timeout=60)
    finally:
        subprocess.run(["rm", "-rf", "/var/lib/osmoda/ledger"], check=True)


def an_ordinary_user_has_the_same_of_their_own_manager(stage: Stage) -> None:
    home = Path("/home/agent")
    work = home / "work"
    units = home / ".config/systemd/user"
    for folder in (work, units):
        folder.mkdir(parents=True, exist_ok=True)
    text = f"[Service]\nWorkingDirectory={work}\n{SAYS_WHERE}".replace("trace", f"{work}/trace")
    profile = home / "profile.toml"
    profile.write_text(f'schema = 1\ntier = 1\n[filesystem]\nwrite = ["{work}"]\nworkspace = "none"\n')
    (units / "alpha.service").write_text(f"{text}[X-Osmoda]\nProfile={profile}\n")
    subprocess.run(["chown", "-R", "agent:agent", str(home)], check=True)
    environment = ["env", "-i", "PATH=/usr/bin:/bin", "HOME=/home/agent", "XDG_RUNTIME_DIR=/run/user/1000"]
    as_user = ["runuser", "-u", "agent", "--", *environment]
    done = subprocess.run(
        [*as_user, COMMAND, "start", "alpha"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    again = ["systemctl", "--user", "start", "alpha.service"]
    subprocess.run([*as_user, *again], check=True, timeout=60)
    assert (work / "trace").read_text() == "inside\ninside\n"
    shown = subprocess.run([*as_user, COMMAND, "list"], capture_output=True, text=True, timeout=60, check=False)
    assert shown.stdout.splitlines()[1].split()[:4] == ["alpha.service", "inactive", "dead", "1"], shown
