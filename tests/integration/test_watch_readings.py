"""What `status` and the ledger say of an agent is what it runs under, also when its files say something else by now."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from tests.watched import Watch, eventually

pytestmark = pytest.mark.parametrize("world", ["root"], indirect=True)

SLEEPER = "import time\nprint('up', flush=True)\ntime.sleep(1000)\n"
WRITER = """\
import errno, time
try:
    open('written', 'w').close()
    print('it writes', flush=True)
except OSError as error:
    print('refused', errno.errorcode[error.errno], flush=True)
time.sleep(1000)
"""
# It ends when it was told to and the file `end` is there.
STUBBORN = """\
import os, signal, sys, time
def end(*_):
    print('ending', flush=True)
    while not os.path.exists('end'):
        time.sleep(0.01)
    sys.exit()
signal.signal(signal.SIGTERM, end)
print('up', flush=True)
time.sleep(1000)
"""


def profile(watch: Watch, folder: str, *, write: bool) -> Path:
    """The profile of the tests' agent, which may write its folder or read it."""
    file = watch.units / "agent.toml"
    file.write_text(f'schema = 1\ntier = 1\n[filesystem]\n{"write" if write else "read"} = ["{folder}"]\n')
    watch.world.own(file)
    return file


def test_what_runs_is_said_until_it_is_restarted(watch: Watch) -> None:
    """The plan of the next start took the place of the running one's in `status`, which was wider."""
    folder = str(watch.folder("agent"))
    file = profile(watch, folder, write=True)
    watch.unit("agent", section=f"Profile={file}", ExecStart=watch.program("agent", WRITER), TimeoutStopSec=10)
    watch.up()
    watch.do("start", "agent")
    watch.wait_for_line("agent", "it writes")
    before = watch.status("agent")

    profile(watch, folder, write=False)
    watch.unit("agent", section=f"Profile={file}", ExecStart=watch.program("agent", WRITER), MemoryMax="64M")
    watch.do("daemon-reload")
    said = watch.status("agent")
    assert [said[key] for key in ("pid", "plan", "limits")] == [before[key] for key in ("pid", "plan", "limits")]
    assert any("until it is restarted" in note for note in said["notes"])
    assert "until it is restarted" in watch.do("status", "agent")

    watch.do("restart", "agent")
    watch.wait_for_line("agent", "refused EROFS")
    after = watch.status("agent")
    assert after["limits"]["memory"] == 64 << 20
    assert after["plan"] != before["plan"]
    assert not any("until it is restarted" in note for note in after["notes"])


def test_who_is_started_while_it_ends_runs_under_its_files_as_they_are_then(watch: Watch) -> None:
    folder = watch.folder("agent")
    file = profile(watch, str(folder), write=True)
    options = {"ExecStart": watch.program("agent", STUBBORN), "TimeoutStopSec": 60}
    watch.unit("agent", section=f"Profile={file}", **options)
    watch.up()
    watch.do("start", "agent")
    watch.wait_for_line("agent", "up")
    before = watch.status("agent")["plan"]
    asked = [threading.Thread(target=watch.ask, args=(verb, "agent"), daemon=True) for verb in ("stop", "start")]
    asked[0].start()
    watch.wait_for_line("agent", "ending")
    profile(watch, str(folder), write=False)
    watch.unit("agent", section=f"Profile={file}", MemoryMax="64M", **options)
    asked[1].start()
    eventually(lambda: any("until it is restarted" in note for note in watch.status("agent")["notes"]), "it was read")
    said = watch.status("agent")
    assert (said["state"], said["plan"]) == ("deactivating", before)
    (folder / "end").touch()
    after = watch.wait_for("agent", state="active")
    assert after["limits"]["memory"] == 64 << 20
    assert after["plan"] != before
    for one in asked:
        one.join(30)
        assert not one.is_alive()


def test_no_command_runs_under_the_plan_of_an_earlier_reading(watch: Watch) -> None:
    """A unit whose condition does not hold was read, and not compiled: its new program ran under the old plan."""
    folder = str(watch.folder("agent"))
    file = profile(watch, folder, write=True)
    program = watch.program("agent", SLEEPER)
    watch.unit("agent", section=f"Profile={file}", ExecStart=program, Restart="always", RestartSec=0)
    watch.up()
    watch.do("start", "agent")
    watch.wait_for_line("agent", "up")
    pid = watch.status("agent")["pid"]

    profile(watch, folder, write=False)
    watch.unit(
        "agent",
        unit="ConditionPathExists=/nowhere",
        section=f"Profile={file}",
        ExecStart=f"{program} anew",
        Restart="always",
        RestartSec=0,
    )
    watch.do("daemon-reload")
    assert watch.status("agent")["pid"] == pid
    os.kill(pid, signal.SIGKILL)
    again = eventually(
        lambda: next((one for one in [watch.status("agent")] if one["pid"] not in (0, pid)), None), "it was restarted"
    )
    assert "anew" not in Path(f"/proc/{again['pid']}/cmdline").read_text()


def test_a_profile_whose_network_the_unit_narrows_is_named_all_the_same(watch: Watch) -> None:
    file = profile(watch, str(watch.folder("agent")), write=False)
    file.write_text(file.read_text() + '[network]\nallow = ["api.example.com"]\n')
    options = {"ExecStart": watch.program("agent", SLEEPER), "PrivateNetwork": "yes"}
    watch.unit("agent", section=f"Profile={file}", **options)
    watch.up()
    watch.do("start", "agent")
    assert watch.status("agent")["profile"] == str(file)
    assert f"Profile: {file}" in watch.do("status", "agent")
    assert "profile agent.toml" in watch.wait_for_line("agent", "in sandbox")
