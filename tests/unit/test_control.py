"""A gateway's control socket: the gateway's end, spoken to as it comes, and by `control_client`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest

from osmoda.egress import asking, control, control_client, control_messages, memory_file, metrics
from osmoda.egress.control_client import Client, ControlError, GatewaySilent, NoSuchSandbox
from osmoda.host import paths
from tests import egress_fakes
from tests.egress_fakes import Gateway, Session
from tests.internet import eventually
from tests.worlds import Program


@pytest.fixture
def gateway(tmp_path):
    gateway = Gateway(str(tmp_path))
    yield gateway
    gateway.close()


@pytest.fixture
def listening(gateway):
    """Its control socket, while its loop runs in a thread."""
    listening = control.listen(gateway)
    with gateway.running():
        yield listening
    for session in gateway.sessions.values():
        asking.session_ended(session)
    gateway.loop.call_soon(gateway.loop.stop)
    listening.close()
    gateway.loop.run()


@pytest.fixture
def client(listening):
    return Client()


@pytest.fixture
def channel(listening):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.settimeout(30)
        channel.connect(listening.path)
        yield channel


def ask(channel, request, descriptors=()):
    if isinstance(request, dict):
        control_messages.say(channel, request, descriptors)
    else:
        channel.send(request)
    return hear(channel)


def hear(channel):
    heard = control_messages.hear(channel)
    if heard is None:
        return None
    assert heard[1] == []
    return heard[0]


def held(gateway, session, name="new.example.com"):
    """The id of a question, and the list that gets its answer."""
    answers = []
    question = gateway.do(lambda: asking.ask(session, name, 443, lambda *answer: answers.append(answer)))
    return question.id, answers


# The socket


def test_its_name_and_its_folder(listening):
    assert listening.path == f"{paths.directory('runtime')}/egress/{os.getpid()}.sock"
    assert stat.S_IMODE(os.stat(os.path.dirname(listening.path)).st_mode) == 0o700


def test_a_dead_gateways_socket_of_the_same_name_is_replaced(gateway):
    path = f"{paths.own_directory('runtime', 'egress')}/{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(path)
    listening = control.listen(gateway)
    with gateway.running():
        assert Client().sessions() == []
        assert gateway.do(lambda: len(listening.peers)) <= 1
    listening.close()
    gateway.loop.call_soon(gateway.loop.stop)
    gateway.loop.run()
    assert not os.path.exists(path)


def test_a_program_in_a_sandbox_is_refused(listening):
    program = f"""
import socket
channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
channel.connect({listening.path!r})
channel.send(b'{{"verb":"sessions"}}')
print(channel.recv(1000))
"""
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"""b'{"sessions":[]}'\n"""
    command[-1] = program.replace("channel.send", "# it may be refused before it has sent anything")
    inside = ["unshare", "--user", "--map-current-user", "--pid", "--fork", *command]
    found = subprocess.run(inside, capture_output=True, check=True)
    assert found.stdout == b"""b'{"error":"a process in a sandbox may not"}'\n"""


def test_more_than_it_can_take_are_turned_away(listening, client, monkeypatch):
    monkeypatch.setattr(control, "MOST_PEERS", 3)
    channels = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(4)]
    for channel in channels:
        channel.connect(listening.path)
    assert "too many" in hear(channels[3])["error"]
    assert hear(channels[3]) is None
    assert ask(channels[0], {"verb": "sessions"}) == {"sessions": []}
    for channel in channels:
        channel.close()
    assert client.sessions() == []


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"verb": "fly"}, "no verb 'fly'"),
        ({"verb": ["sessions"]}, "no verb"),
        ({}, "no verb None"),
        ({"verb": "policy"}, "the request lacks 'session'"),
        ({"verb": "policy", "session": "box"}, "the policy is missing"),
        ({"verb": "decide", "id": "1-1", "how": "perhaps"}, "once, run or refuse"),
        ({"verb": "dial", "agent": "a", "port": "x", "visitor": "", "sandbox": ""}, "invalid literal"),
        ({"verb": "dial", "agent": "a", "port": float("inf"), "visitor": "", "sandbox": ""}, "infinity"),
        ({"verb": "stop", "seconds": float("nan")}, "that many seconds"),
        ({"verb": "stop", "seconds": -1}, "that many seconds"),
        ({"verb": "watch", "sandboxes": 7}, "not iterable"),
    ],
)
def test_a_request_that_cannot_be_met_is_answered_and_the_next_one_too(request_, error, gateway, channel):
    Session(gateway, "box")
    assert error in ask(channel, request_)["error"]
    assert len(ask(channel, {"verb": "sessions"})["sessions"]) == 1


@pytest.mark.parametrize("content", [b"x", b"[1]", b"M", b"\xff", b"[" * 30_000, b"{}" * 30_000])
def test_what_is_no_request_ends_the_conversation(content, channel, client):
    assert "error" in ask(channel, content)
    assert hear(channel) is None
    assert client.sessions() == []


def test_descriptors_that_nobody_wants_are_closed(channel, listening):
    read, write = os.pipe()
    for verb in ("sessions", "fly", "policy"):
        ask(channel, {"verb": verb}, (write, write))
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)


def test_a_body_that_could_keep_it_waiting_is_refused(channel):
    read, write = os.pipe()
    socket.send_fds(channel, [b"M"], [read])
    assert "does not lie in memory" in hear(channel)["error"]
    os.close(read)
    os.close(write)


# Who is served


def test_sessions(gateway, client):
    Session(gateway, "second", "writer", serve=(8081,))
    Session(gateway, "first", "research", ask=True).opened = 5.0
    first, second = client.sessions()
    assert (first.identity, first.agent, first.ask, first.opened) == ("first", "research", True, 5.0)
    assert (second.identity, second.serve, second.pid) == ("second", (8081,), os.getpid())
    assert (second.token, second.files) == (b"\x00token", ("/etc/writer.toml",))
    assert second.policy == gateway.sessions["second"].policy.digest
    assert client.silent == []


def test_an_answer_larger_than_a_message(gateway, client):
    for number in range(500):
        Session(gateway, f"box{number}", "research").token = os.urandom(300)
    found = client.sessions()
    assert len(found) == 500
    assert {served.identity: served.token for served in found} == {
        session.identity: session.token for session in gateway.sessions.values()
    }


# Policies


def test_a_policy_comes_into_force(gateway, client):
    session = Session(gateway, "box", "research")
    session.closes = 7
    assert not session.policy.decide("a.example.com", 443).allowed
    assert client.policy("box", egress_fakes.policy(allow={"a.example.com": "t.toml:2"})) == 7
    assert session.policy.decide("a.example.com", 443).allowed


def test_a_large_one_does_not_hold_up_the_others(gateway, listening, client):
    session = Session(gateway, "box", "research")
    blob = egress_fakes.policy(allow={f"n{number}.example.com": "t.toml:2" for number in range(50_000)})
    turns, loaded = [], []

    def turn():
        if listening.loading:
            turns.append(len(listening.loading))
        if not loaded:
            gateway.loop.call_soon(turn)

    gateway.do(turn)
    loaded.append(client.policy("box", blob))
    assert loaded == [0]
    assert session.policy.decide("n49999.example.com", 443).allowed
    assert len(turns) > 20, "it is read in steps, and others have their turn between them"


def test_the_gateway_that_has_a_sandbox_is_asked_first_and_the_others_when_it_has_moved(gateway, client):
    session = Session(gateway, "box", "research")
    session.closes = 7
    blob = egress_fakes.policy(allow={"a.example.com": "t.toml:2"})
    assert client.policy("box", blob, os.getpid()) == 7
    assert client.policy("box", blob, os.getpid() + 1) == 7
    with pytest.raises(NoSuchSandbox):
        client.policy("none", blob, os.getpid())


def test_of_two_policies_the_later_one_stays(gateway, listening):
    session = Session(gateway, "box", "research")
    large = egress_fakes.policy(allow={f"n{number}.example.com": "t.toml:2" for number in range(50_000)})
    both_are_sent = threading.Event()
    gateway.loop.call_from_thread(lambda: both_are_sent.wait(30))
    with contextlib.ExitStack() as stack:
        channels = []
        for blob in (large, egress_fakes.policy(deny={"evil.com": "t.toml:3"})):
            channels.append(stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)))
            channels[-1].settimeout(30)
            channels[-1].connect(listening.path)
            body = memory_file.create("policy", blob)
            control_messages.say(channels[-1], {"verb": "policy", "session": "box"}, (body,))
            os.close(body)
        both_are_sent.set()
        assert [hear(channel) for channel in channels] == [
            {"error": "a later edit has taken its place"},
            {"closed": 0},
        ]
    assert session.policy.denied_explicitly("evil.com", 443)


def test_what_is_no_policy_leaves_the_one_before(gateway, client):
    session = Session(gateway, "box", "research", allow={"a.example.com": "t.toml:2"})
    before = session.policy
    for blob in (b"", b"junk" * 1000, egress_fakes.policy()[:-10]):
        with pytest.raises(ControlError, match="policy"):
            client.policy("box", blob)
    assert session.policy is before


def test_a_sandbox_that_nobody_has(gateway, client):
    with pytest.raises(NoSuchSandbox, match="there is no running sandbox box"):
        client.policy("box", egress_fakes.policy())


def test_a_sandbox_that_ends_while_its_policy_is_read(gateway, client):
    session = Session(gateway, "box", "research")
    session.ended = True
    with pytest.raises(NoSuchSandbox):
        client.policy("box", egress_fakes.policy())


def test_an_edit_answers_questions_and_ends_visits(gateway, client):
    from osmoda.egress.visits import Visit

    session = Session(gateway, "box", "writer", ask=True, serve=(8081, 8082))
    _, answers = held(gateway, session)
    ended = []
    Visit(session, 8081, ended.append)
    Visit(session, 8082, ended.append)
    blob = egress_fakes.policy(allow={"new.example.com": "t.toml:2"}, serve=(8081,))
    assert client.policy("box", blob) == 1
    assert ended == ["agent writer no longer serves port 8082"]
    gateway.do(lambda: None)
    assert answers == [(True, "t.toml:2 allows it")]


# Questions


@pytest.mark.parametrize("how", ["once", "run"])
def test_approving(how, gateway, client):
    session = Session(gateway, "box", "research", ask=True)
    identity, answers = held(gateway, session)
    assert [entry["id"] for entry in client.pending()] == [identity]
    served, name, port = client.approve(identity, how)
    assert (served.identity, name, port) == ("box", "new.example.com", 443)
    assert client.pending() == []
    gateway.do(lambda: None)
    assert [allowed for allowed, _ in answers] == [True]
    assert session.approved == ({("new.example.com", 443)} if how == "run" else set())


def test_refusing(gateway, client):
    identity, answers = held(gateway, Session(gateway, "box", "research", ask=True))
    client.refuse(identity)
    gateway.do(lambda: None)
    assert [allowed for allowed, _ in answers] == [False]
    with pytest.raises(NoSuchSandbox, match=f"no question {identity} is open"):
        client.refuse(identity)


def test_pending_in_the_order_of_asking(gateway, client):
    sessions = [Session(gateway, f"box{number}", "research", ask=True) for number in range(3)]
    asked = [held(gateway, session)[0] for session in reversed(sessions)]
    assert [entry["id"] for entry in client.pending()] == asked


# Records as they come


def test_watching(gateway, client):
    found = client.watch()
    first = []
    thread = threading.Thread(target=lambda: first.append(next(found)))
    thread.start()
    eventually(lambda: gateway.do(lambda: list(gateway.log.watchers)), "somebody watches")
    gateway.do(lambda: gateway.write({"event": "name", "sandbox": "a", "name": "evil.com"}) or True)
    thread.join(10)
    assert first == [{"event": "name", "sandbox": "a", "name": "evil.com"}]
    gateway.do(lambda: [gateway.write({"n": number}) for number in range(300)])
    assert [next(found)["n"] for _ in range(300)] == list(range(300))
    found.close()
    eventually(lambda: not gateway.do(lambda: list(gateway.log.watchers)), "nobody watches")


def test_watching_some_sandboxes(gateway, channel):
    control_messages.say(channel, {"verb": "watch", "sandboxes": ["a", "c"]})
    eventually(lambda: gateway.do(lambda: list(gateway.log.watchers)), "somebody watches")
    gateway.do(lambda: [gateway.write({"sandbox": name}) for name in "abc"])
    assert [hear(channel), hear(channel)] == [{"sandbox": "a"}, {"sandbox": "c"}]


def test_a_watcher_that_does_not_read_misses_records_and_is_told(gateway, channel):
    control_messages.say(channel, {"verb": "watch"})
    eventually(lambda: gateway.do(lambda: list(gateway.log.watchers)), "somebody watches")
    gateway.do(lambda: [gateway.write({"n": number, "name": "x" * 500}) for number in range(3000)])
    found = [hear(channel)]
    while "missed" not in found[-1]:
        found.append(hear(channel))
    numbers = [record["n"] for record in found[:-1]]
    assert numbers == list(range(len(numbers)))
    assert found[-1] == {"event": "missed", "missed": 3000 - len(numbers)}
    gateway.do(lambda: gateway.write({"n": 3000}) or True)
    assert hear(channel) == {"n": 3000}


def test_a_watcher_asks_for_nothing_else(gateway, channel):
    control_messages.say(channel, {"verb": "watch"})
    assert ask(channel, {"verb": "sessions"}) == {"error": "one thing at a time"}


# Numbers, and the end


def test_metrics(gateway, client):
    Session(gateway, "box", "research")
    gateway.counters.accepted = 12
    (numbers,) = client.metrics()
    assert numbers == gateway.do(lambda: metrics.snapshot(gateway))
    assert (numbers["sessions"], numbers["accepted"], numbers["names_dropped"]) == (1, 12, 3)


def test_stopping(gateway, client):
    assert client.stop(2.5) == 1
    eventually(lambda: gateway.drained, "it is to end")
    assert gateway.drained == [2.5]


def test_its_end_ends_all_conversations(gateway):
    listening = control.listen(gateway)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.connect(listening.path)
        with gateway.running():
            assert ask(channel, {"verb": "sessions"}) == {"sessions": []}
        listening.close()
        gateway.loop.call_soon(gateway.loop.stop)
        gateway.loop.run()
        assert hear(channel) is None
    assert not os.path.exists(listening.path)


# Several gateways


GATEWAY = """
import os, sys
from osmoda.egress import control
from tests.egress_fakes import Gateway, Session, policy
gateway = Gateway("")
Session(gateway, sys.argv[1], "agent")
listening = control.listen(gateway)
print("ready", flush=True)
gateway.loop.run()
listening.close()
"""


@pytest.fixture
def others():
    """Two gateways in processes of their own."""
    started = [Program([sys.executable, "-c", GATEWAY, name], stdout=subprocess.PIPE, text=True) for name in ("x", "y")]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    yield started
    for process in started:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        process.stdout.close()
    Client().sessions()  # removes their sockets


def test_all_gateways_of_the_user_are_asked(gateway, client, others):
    Session(gateway, "z", "agent")
    assert sorted(served.identity for served in client.sessions()) == ["x", "y", "z"]
    assert len(client.metrics()) == 3
    assert client.policy("y", egress_fakes.policy(ask=True)) == 0
    assert {served.identity: served.ask for served in client.sessions()} == {"x": False, "y": True, "z": False}


def heard_of_two(client):
    """Whether those that do not hang answer, each in the whole time; on a busy machine not in the shortest."""
    for seconds in (0.5, 5.0, 20.0):
        begin = time.monotonic()
        found = client._ask({"verb": "sessions"}, seconds=seconds)
        assert seconds <= time.monotonic() - begin < 60
        if len(found) == 2:
            return True
    return False


def test_a_gateway_that_hangs_does_not_hang_the_client(gateway, client, others, monkeypatch):
    monkeypatch.setattr(control_client, "LOADING_SECONDS", 3.0)
    Session(gateway, "z", "agent")
    others[0].send_signal(signal.SIGSTOP)
    assert heard_of_two(client)
    assert client.silent == [others[0].pid]
    assert client.policy("z", egress_fakes.policy()) == 0
    with pytest.raises(GatewaySilent, match=f"process {others[0].pid} does not answer"):
        client.policy("x", egress_fakes.policy())


def test_a_gateway_whose_backlog_is_full_does_not_hang_the_client(gateway, client, others):
    others[0].send_signal(signal.SIGSTOP)
    path = f"{client.folder}/{others[0].pid}.sock"
    waiting = []
    with contextlib.suppress(BlockingIOError):
        while True:
            waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK))
            waiting[-1].connect(path)
    assert heard_of_two(client)
    assert client.silent == [others[0].pid]
    for channel in waiting:
        channel.close()


def test_the_socket_of_a_dead_gateway_is_removed(client, others):
    path = f"{client.folder}/{others[0].pid}.sock"
    others[0].kill()
    others[0].wait()
    assert os.path.exists(path)
    assert [served.identity for served in client.sessions()] == ["y"]
    assert client.silent == []
    assert not os.path.exists(path)


def test_one_that_is_just_about_to_listen_is_not(client):
    """Bound, and refused: but the process lives."""
    path = f"{client.folder}/{os.getppid()}.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bound:
        bound.bind(path)
        assert client.sessions() == []
        assert os.path.exists(path)
    os.unlink(path)


def test_other_files_there_are_not_gateways(client):
    for name in ("service.sock", "12.lock", "x.sock"):
        with open(f"{client.folder}/{name}", "w"):
            pass
    assert client.sessions() == []
    for name in ("service.sock", "12.lock", "x.sock"):
        os.unlink(f"{client.folder}/{name}")


def test_a_gateway_that_starts_later_is_watched_too(client, monkeypatch):
    monkeypatch.setattr(control_client, "_PERIOD", 0.02)
    found = []
    watching = client.watch()
    thread = threading.Thread(target=lambda: found.append(next(watching)))
    thread.start()
    code = GATEWAY.replace("gateway.loop.run()", LATER)
    with Program([sys.executable, "-c", code, "late"], stdout=subprocess.PIPE, text=True) as process:
        thread.join(10)
        assert found == [{"event": "late"}]
        watching.close()
        process.kill()
    client.sessions()


LATER = """
def look():
    if gateway.log.watchers:
        gateway.write({"event": "late"})
    else:
        gateway.loop.call_later(0.01, look)
look()
gateway.loop.run()
"""
