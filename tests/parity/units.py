"""Scenarios: the files that make a unit, and the sockets that start one."""

from __future__ import annotations

import socket

from tests.parity.stage import Stage

# Serves what it was given, and says how that came: one connection after the other.
SERVES = """import os, socket
count = int(os.environ["LISTEN_FDS"])
for_us = int(os.environ["LISTEN_PID"]) == os.getpid()
with open("trace", "a") as file:
    print("run", count, os.environ.get("LISTEN_FDNAMES"), for_us, file=file)
listener = socket.socket(fileno=3)
while True:
    connection, _ = listener.accept()
    said = connection.recv(100)
    connection.sendall(b"got " + said)
    connection.close()
    if said == b"end":
        break
"""


def a_drop_in_changes_a_unit(stage: Stage) -> None:
    stage.service("Type=oneshot\nEnvironment=ONE=1 TWO=1\nExecStart=/bin/sh -c 'echo file >>trace'\n")
    stage.unit("alpha.service.d/10-first.conf", "[Service]\nEnvironment=TWO=2\n")
    stage.unit(
        "alpha.service.d/20-second.conf",
        "[Service]\nExecStart=\nExecStart=/bin/sh -c 'echo drop-in $ONE $TWO >>trace'\n",
    )
    assert stage.start("alpha.service")
    assert stage.trace() == ["drop-in 1 2"]


def a_drop_in_for_a_template_is_for_its_instances(stage: Stage) -> None:
    stage.service(
        "Type=oneshot\nEnvironment=ONE=1\nExecStart=/bin/sh -c 'echo %i $ONE >>trace'\n", name="alpha@.service"
    )
    stage.unit("alpha@.service.d/10-all.conf", "[Service]\nEnvironment=ONE=all\n")
    stage.unit("alpha@two.service.d/20-one.conf", "[Service]\nEnvironment=ONE=one\n")
    assert stage.start("alpha@one.service")
    assert stage.start("alpha@two.service")
    assert stage.trace() == ["one all", "two one"]


def what_is_not_there_does_not_start(stage: Stage) -> None:
    assert not stage.start("alpha.service")


def a_change_counts_from_the_next_start(stage: Stage) -> None:
    stage.service("Type=oneshot\nExecStart=/bin/sh -c 'echo one >>trace'\n")
    assert stage.start("alpha.service")
    stage.service("Type=oneshot\nExecStart=/bin/sh -c 'echo two >>trace'\n")
    assert stage.start("alpha.service")
    assert stage.trace() == ["one", "two"]


def _asks(stage: Stage, text: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(stage.folder / "socket"))
        client.sendall(text)
        return client.recv(100)


def a_socket_starts_its_service_at_the_first_connection(stage: Stage) -> None:
    stage.file("serves.py", SERVES)
    stage.service("ExecStart=/usr/bin/python3 -S -E @dir@/serves.py\n")
    stage.unit("alpha.socket", "[Socket]\nListenStream=@dir@/socket\nFileDescriptorName=front\n")
    assert stage.start("alpha.socket")
    assert stage.trace() == []
    assert stage.state("alpha.service").active == "inactive"
    assert _asks(stage, b"one") == b"got one"
    stage.until_state("active", "running")
    assert _asks(stage, b"end") == b"got end"
    stage.until_state("inactive", "dead")
    # The socket is still there, and starts it again.
    assert _asks(stage, b"two") == b"got two"
    assert stage.trace() == ["run 1 front True"] * 2


def a_socket_that_is_stopped_listens_no_more(stage: Stage) -> None:
    stage.file("serves.py", SERVES)
    stage.service("ExecStart=/usr/bin/python3 -S -E @dir@/serves.py\n")
    stage.unit("alpha.socket", "[Socket]\nListenStream=@dir@/socket\n")
    assert stage.start("alpha.socket")
    assert _asks(stage, b"one") == b"got one"
    assert stage.stop("alpha.socket")
    assert stage.stop("alpha.service")
    try:
        _asks(stage, b"two")
    except OSError:
        pass
    else:
        raise AssertionError("something still listens")


# Answers whoever connects, until the file `sick` is there: then it hangs up without a word.
ANSWERS = """import os, socket
listener = socket.create_server(("127.0.0.1", 8080))
with open("trace", "a") as file:
    print("run", file=file)
while True:
    connection, _ = listener.accept()
    if not os.path.exists("sick"):
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
    connection.close()
"""


def an_unhealthy_agent_is_restarted(stage: Stage) -> None:
    """Of osmoda's engines alone: systemd has no such checks."""
    stage.file("answers.py", ANSWERS)
    stage.service("Restart=on-failure\nRestartSec=0.1\nExecStart=/usr/bin/python3 -S -E @dir@/answers.py\n")
    stage.unit(
        "alpha.service.d/health.conf",
        "[X-Osmoda]\nHealthCheck=http://:8080/\nHealthCheck=exec:/bin/sh -c '[ ! -e sick ]'\n"
        "HealthInterval=0.2\nHealthTimeout=20\nHealthRetries=2\nHealthStartPeriod=5\n",
    )
    assert stage.start("alpha.service")
    stage.until_trace("run")
    stage.until_state("active", "running")
    stage.file("sick", "")
    stage.until(lambda: len(stage.trace()) > 1, stage.trace)
    (stage.folder / "sick").unlink()
    assert stage.until_state("active", "running").restarts >= 1
