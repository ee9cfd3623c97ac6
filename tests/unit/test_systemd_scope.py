"""What is asked of systemd, and that anything but its yes and the kernel's ends in a refusal.

The manager here is a stand-in on a real socket that speaks D-Bus. That the real one gives a scope, and that limits hold
in it, is shown in tests/vm.
"""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import threading

import pytest
from dbus_fast import Message, MessageType, Variant
from dbus_fast._private.unmarshaller import Unmarshaller

JOB = "/org/freedesktop/systemd1/job/7"

# A process that enters a scope: where the kernel says that it is, and how long it waits, are the test's.
ENTER = """
import json, os, sys
from osmoda.host import cgroup, delegation, systemd_scope
bus, group, patience = sys.argv[1:]
delegation.manager_bus = lambda: bus
delegation.offered = lambda mount: ["memory"]
cgroup.own_group = lambda: group
cgroup._own_groups = lambda: (group, {})
systemd_scope.PATIENCE = float(patience)
before = cgroup.find().scope
try:
    systemd_scope.enter("osmoda-t.scope")
    said = ""
except OSError as error:
    said = error.strerror
tasks = len(os.listdir("/proc/self/task"))
loaded = sorted({"asyncio", "dbus_fast"} & sys.modules.keys())
children = open(f"/proc/self/task/{os.getpid()}/children").read()
print(json.dumps([before, said, cgroup.find().scope, cgroup.refusal(), tasks, loaded, children, os.getpid()]))
"""


class Manager(threading.Thread):
    """A bus with systemd's manager on it. `answer` makes of each call the messages that go back, or None to hang up."""

    def __init__(self, path, answer):
        super().__init__(daemon=True)
        self.answer = answer
        self.calls = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.start()

    def run(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb", buffering=0) as stream:
                if stream.read(1) == b"\0":  # else it only looked who is there
                    self.serve(stream)

    def serve(self, stream):
        while (line := stream.readline()) != b"BEGIN\r\n":
            if not line:
                return
            stream.write(b"OK 0123456789abcdef0123456789abcdef\r\n")
        reader = io.BufferedReader(stream)
        serial = 0
        while True:
            try:
                call = Unmarshaller(reader).unmarshall()
            except EOFError:
                return
            if call is None:
                return
            self.calls.append(call)
            answers = [Message.new_method_return(call, "s", [":1.1"])] if call.member == "Hello" else self.answer(call)
            if answers is None:
                return
            for message in answers:
                serial += 1
                message.serial = serial
                message.sender = "org.freedesktop.systemd1"
                stream.write(bytes(message._marshall(False)))

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.join()


def removed(job, result):
    return Message(
        path="/org/freedesktop/systemd1",
        interface="org.freedesktop.systemd1.Manager",
        member="JobRemoved",
        message_type=MessageType.SIGNAL,
        signature="uoss",
        body=[7, job, "osmoda-t.scope", result],
    )


def ending_with(result):
    def answer(call):
        if call.member != "StartTransientUnit":
            return [Message.new_method_return(call)]
        # Another's job ends meanwhile, and this one's before its own call has returned.
        return [
            removed(JOB + "1", "failed"),
            removed(JOB, result),
            Message.new_method_return(call, "o", [JOB]),
        ]

    return answer


def refusing(member, text):
    def answer(call):
        if call.member == member:
            return [Message.new_error(call, "org.freedesktop.DBus.Error.AccessDenied", text)]
        return ending_with("done")(call)

    return answer


@pytest.fixture
def enter(tmp_path):
    """Enter a scope with `answer` as the manager: what came of it, and the calls that it had."""
    path = str(tmp_path / "a bus")
    managers = []

    def run(answer, group="/user.slice/osmoda-t.scope", patience=20.0):
        if answer:
            managers.append(Manager(path, answer))
        argv = [sys.executable, "-c", ENTER, path, group, str(patience)]
        result = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout), [call for manager in managers for call in manager.calls]

    yield run
    for manager in managers:
        manager.close()


def test_what_is_asked(enter):
    (*_, pid), calls = enter(ending_with("done"))
    assert [call.member for call in calls] == ["Hello", "AddMatch", "Subscribe", "StartTransientUnit"]
    name, mode, properties, others = calls[-1].body
    assert (name, mode, others) == ("osmoda-t.scope", "fail", [])
    asked = dict(properties)
    assert asked["PIDs"] == Variant("au", [pid])
    assert asked["Delegate"] == Variant("b", True)
    assert asked["CollectMode"] == Variant("s", "inactive-or-failed")


def test_the_one_that_asks_leaves_no_thread_no_module_and_no_child(enter):
    (*_, tasks, loaded, children, _), _ = enter(ending_with("done"))
    assert (tasks, loaded, children) == (1, [], "")


REFUSALS = {
    "the manager says no": (refusing("StartTransientUnit", "Not today."), {}, "Not today."),
    "the bus says no": (refusing("AddMatch", "No such rule."), {}, "No such rule."),
    "the job fails": (ending_with("failed"), {}, "the job for osmoda-t.scope ended with failed"),
    "it says yes, the kernel no": (
        ending_with("done"),
        {"group": "/user.slice/session-1.scope"},
        "it says that it did, but this process is in /user.slice/session-1.scope",
    ),
    "no controllers come with it": (ending_with("done"), {}, "the scope it started has no controllers to hand down"),
    "it hangs up": (lambda call: None, {}, "the bus hung up"),
    "it never answers": (lambda call: [], {"patience": 0.3}, "it did not answer within 0.3 seconds"),
    "nobody listens": (None, {}, "connect"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_anything_else_is_a_refusal_and_offers_no_scope_again(case, enter):
    answer, options, words = REFUSALS[case]
    (before, said, after, refusal, tasks, loaded, children, _), _ = enter(answer, **options)
    assert before
    assert not after
    assert said == refusal
    assert said.startswith("systemd has not started a scope for the limits: ")
    assert words in said
    assert "\n" not in said
    assert (tasks, loaded, children) == (1, [], "")
