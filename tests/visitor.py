"""What a program inside says to the network, step by step: `python3 visitor.py WORKERS STEPS`; prints answers as JSON.

STEPS is a JSON list of tables; `do` names the function below, the rest are its arguments. With several workers they are
taken at the same time. Text stands for bytes, as Latin-1. It runs with whatever Python a sandbox shows, and needs
nothing but its library.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import ssl
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor

FAMILIES = {0: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}
CLIENT_HELLO, SERVER_HELLO = 1, 2
ECH = 0xFE0D


class Over(Exception):
    """The connection has ended, and how."""


def word(error):
    """An OSError as its name, and one of the resolver as its meaning."""
    if isinstance(error, socket.gaierror):
        return {socket.EAI_NONAME: "no such name", socket.EAI_AGAIN: "no name now"}.get(error.errno, str(error))
    if isinstance(error, TimeoutError):
        return "timeout"
    return errno.errorcode.get(error.errno, str(error))


def connected(host, port, family, seconds, bound=""):
    """A connection to the first address that takes one."""
    last = None
    for found, kind, protocol, _, address in socket.getaddrinfo(host, port, FAMILIES[family], socket.SOCK_STREAM):
        client = socket.socket(found, kind, protocol)
        client.settimeout(seconds)
        try:
            if bound:
                client.bind((bound, 0))
            client.connect(address)
            return client
        except OSError as error:
            client.close()
            last = error
    raise last


def receive(client):
    """Some bytes; raises Over when there are no more."""
    try:
        got = client.recv(65536)
    except ConnectionResetError:
        raise Over("reset") from None
    except TimeoutError:
        raise Over("timeout") from None
    if not got:
        raise Over("eof")
    return got


def say(client, pieces, pause=0.0):
    for piece in pieces:
        try:
            client.sendall(piece)
        except (ConnectionResetError, BrokenPipeError):
            return
        if pause:
            time.sleep(pause)


def resolve(name, family=0):
    found = socket.getaddrinfo(name, 443, FAMILIES[family], socket.SOCK_STREAM)
    return {"addresses": sorted({answer[4][0] for answer in found})}


def connect(host, port, family=0, seconds=5, bound=""):
    """Only that."""
    with connected(host, port, family, seconds, bound) as client:
        return {"end": "connected", "local": client.getsockname()[0]}


def talk(host, port, send=(), family=0, seconds=15, pause=0.0, shut=False, most=65536, bound="", until="", repeat=1):
    """Say all of `send`, `repeat` times, then listen to the end, or to `most` bytes, or to the text `until`."""
    began = time.monotonic()
    got = b""
    with connected(host, port, family, seconds, bound) as client:
        say(client, [piece.encode("latin-1") for piece in send] * repeat, pause)
        end = ""
        try:
            if shut:
                client.shutdown(socket.SHUT_WR)
            while len(got) < most and not (until and until.encode() in got):
                got += receive(client)
        except Over as over:
            end = str(over)
        except OSError as error:
            end = word(error)
    return {"end": end, "got": got.decode("latin-1"), "seconds": time.monotonic() - began}


def with_ech(flight):
    """The client's first flight with the extension of an encrypted hello, as browsers send it, filled with noise."""
    inner = (
        b"\0"
        + struct.pack("!HHB", 1, 1, 7)
        + struct.pack("!H", 32)
        + bytes(32)
        + struct.pack("!H", 144)
        + b"\x55" * 144
    )
    extension = struct.pack("!HH", ECH, len(inner)) + inner
    body = flight[9:]
    at = 2 + 32
    at += 1 + body[at]
    at += 2 + int.from_bytes(body[at : at + 2], "big")
    at += 1 + body[at]
    length = int.from_bytes(body[at : at + 2], "big")
    body = body[:at] + (length + len(extension)).to_bytes(2, "big") + body[at + 2 :] + extension
    handshake = bytes([CLIENT_HELLO]) + len(body).to_bytes(3, "big") + body
    return flight[:3] + len(handshake).to_bytes(2, "big") + handshake


def in_records(flight, size):
    """The same handshake message in records of `size` bytes (RFC 8446, section 5.1)."""
    message = flight[5:]
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(flight[:3] + len(part).to_bytes(2, "big") + part for part in parts)


class Tls:
    """A TLS client that shows its first flight before it is sent."""

    def __init__(self, client, sni, context, shape):
        self.client = client
        self.shape = shape
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self.incoming, self.outgoing, server_hostname=sni or None)

    def flush(self):
        data = self.outgoing.read()
        if not data:
            return
        pieces = [data]
        if self.shape is not None:
            pieces, self.shape = self.shape(data), None
        say(self.client, pieces, 0.002 if len(pieces) > 1 else 0)

    def until(self, action):
        """Do `action` as soon as enough has come."""
        while True:
            try:
                done = action()
            except ssl.SSLWantReadError:
                self.flush()
                try:
                    self.incoming.write(receive(self.client))
                except Over:
                    self.incoming.write_eof()
                    raise
            else:
                self.flush()
                return done


def tls(
    host, port=443, sni=None, send="", family=0, seconds=15, verify=False, alpn=(), record=0, segment=0, ech=False,
    replace=(), until="", most=65536,
):  # fmt: skip
    """Shake hands, say `send`, and listen. `sni` is `host` unless given; empty for none.

    The first flight may go in records and segments of a size, with ECH, or with text in it replaced by other text of
    the same length, after which no server can agree, but a gateway has seen what it has seen.
    """

    def shape(flight):
        if replace:
            flight = flight.replace(replace[0].encode("latin-1"), replace[1].encode("latin-1"))
        if ech:
            flight = with_ech(flight)
        if record:
            flight = in_records(flight, record)
        return [flight[at : at + segment] for at in range(0, len(flight), segment)] if segment else [flight]

    got = b""
    version = names = ""
    # Made before there is a connection: who is refused is not waited for while it reads certificates.
    context = ssl.create_default_context() if verify else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    with connected(host, port, family, seconds) as client:
        conversation = Tls(client, host if sni is None else sni, context, shape)
        try:
            conversation.until(conversation.session.do_handshake)
            version = conversation.session.version()
            certificate = conversation.session.getpeercert(binary_form=False) if verify else None
            names = [value for _, value in (certificate or {}).get("subjectAltName", ())]
            if send:
                conversation.session.write(send.encode("latin-1"))
                conversation.flush()
            while send and len(got) < most and not (until and until.encode() in got):
                some = conversation.until(lambda: conversation.session.read(65536))
                if not some:
                    raise Over("eof")
                got += some
            end = "" if send else "agreed"
        except Over as over:
            end = str(over)
        except ssl.SSLCertVerificationError as error:
            end = "certificate: " + error.verify_message
        except ssl.SSLZeroReturnError:
            end = "eof"
        except ssl.SSLError as error:
            end = (error.reason or "").lower().replace("_", " ") or str(error)
    answer = {"end": end, "got": got.decode("latin-1"), "version": version, "names": names}
    if conversation.session.selected_alpn_protocol():
        answer["alpn"] = conversation.session.selected_alpn_protocol()
    return answer


def flood(host, port=443, claimed=0xFFFFFF, family=0, seconds=15):
    """A hello that claims a length and goes on until somebody ends it: how many bytes were taken, and what came."""
    sent, got, end = 0, b"", ""
    message = bytes([CLIENT_HELLO]) + claimed.to_bytes(3, "big") + b"\3\3" + bytes(16000)
    with connected(host, port, family, seconds) as client:
        deadline = time.monotonic() + seconds
        client.setblocking(False)
        rest = b""
        while not end and time.monotonic() < deadline:
            readable, writable, _ = select.select([client], [client], [], 1)
            try:
                if readable:
                    some = client.recv(65536)
                    got += some
                    end = "" if some else "eof"
                if writable and not end and sent < claimed:
                    rest = rest or b"\x16\3\1" + len(message).to_bytes(2, "big") + message
                    count = client.send(rest)
                    sent += count
                    rest = rest[count:]
                    message = bytes(16000)
            except (ConnectionResetError, BrokenPipeError):
                end = "reset"
    return {"end": end or "timeout", "sent": sent, "got": got.decode("latin-1")}


def hold(host, port, count, family=0, seconds=20):
    """Open `count` connections and keep them; how each of those ended that did, in order of their opening."""
    clients, ends = [], {}
    try:
        while len(clients) < count:
            clients.append(connected(host, port, family, seconds))
        deadline = time.monotonic() + seconds
        by_number = {client.fileno(): number for number, client in enumerate(clients)}
        poll = select.poll()
        for client in clients:
            poll.register(client, select.POLLIN)
        while not ends and time.monotonic() < deadline:
            for number, _ in poll.poll(200):
                try:
                    ends[by_number[number]] = clients[by_number[number]].recv(4096).decode("latin-1") or "eof"
                except ConnectionResetError:
                    ends[by_number[number]] = "reset"
        return {"opened": len(clients), "ends": ends}
    finally:
        for client in clients:
            client.close()


def datagram(host, port, send="x", family=0, seconds=3, bound=""):
    """One datagram, and what comes back."""
    answers = socket.getaddrinfo(host, port, FAMILIES[family], socket.SOCK_DGRAM)
    found, kind, protocol, _, address = answers[0]
    with socket.socket(found, kind, protocol) as client:
        client.settimeout(seconds)
        if bound:
            client.bind((bound, 0))
        client.connect(address)
        client.send(send.encode("latin-1"))
        return {"end": "", "got": client.recv(65536).decode("latin-1")}


def dns(name=None, labels=(), kind=1, tcp=False, server="", seconds=20, family=4):
    """Ask a name server, by default the one of resolv.conf; labels may hold any byte."""
    if not server:
        with open("/etc/resolv.conf") as file:
            server = next(line.split()[1] for line in file if line.startswith("nameserver"))
        if family == 6:
            server = "2001:2::1"
    parts = name.split(".") if name is not None else labels
    question = b"".join(bytes([len(part)]) + part.encode("latin-1") for part in parts) + b"\0"
    options = b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0)
    query = struct.pack("!6H", 0x1234, 0x0100, 1, 0, 0, 1) + question + struct.pack("!HH", kind, 1) + options
    of = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(of, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as client:
        client.settimeout(seconds)
        client.connect((server, 53))
        if tcp:
            client.sendall(len(query).to_bytes(2, "big") + query)
            wire = client.recv(65536)
            while len(wire) < 2 or len(wire) < 2 + int.from_bytes(wire[:2], "big"):
                wire += receive(client)
            wire = wire[2:]
        else:
            client.send(query)
            wire = client.recv(65536)
    _, flags, _, answers, _, additional = struct.unpack_from("!6H", wire)
    return {"rcode": flags & 15, "answers": answers, **(extended(wire, len(question)) if additional else {})}


def extended(wire, length):
    """The extended error (RFC 8914) in an answer without records, where there is one."""
    at = 12 + length + 4
    if wire[at : at + 3] != b"\0\0\x29":
        return {}
    options = wire[at + 11 :]
    while len(options) > 4:
        code, size = struct.unpack_from("!HH", options)
        if code == 15:
            return {"code": int.from_bytes(options[4:6], "big"), "text": options[6 : 4 + size].decode()}
        options = options[4 + size :]
    return {}


def mark(option, host, port, level=socket.SOL_SOCKET, value=1, family=4):
    """Set an option of a socket, and connect with it."""
    with socket.socket(FAMILIES[family], socket.SOCK_STREAM) as client:
        client.settimeout(5)
        client.setsockopt(level, option, value if isinstance(value, int) else value.encode("latin-1"))
        client.connect((host, port))
        return {"end": "connected"}


def original(host, port, family=4):
    """What SO_ORIGINAL_DST says to the client of a redirected connection."""
    with connected(host, port, family, 5) as client:
        level, size = (socket.SOL_IP, 16) if family == 4 else (socket.IPPROTO_IPV6, 28)
        packed = client.getsockopt(level, 80, size)
        return {"port": int.from_bytes(packed[2:4], "big"), "peer": client.getpeername()[0]}


def make(domain, kind, protocol=0):
    """A socket of a kind."""
    socket.socket(domain, kind, protocol).close()
    return {"end": "made"}


def ports(host, first, last, family=4):
    """Every TCP port from `first` to `last` that takes a connection, or ends one otherwise than by refusing it."""
    found = {}
    for port in range(first, last + 1):
        with socket.socket(FAMILIES[family], socket.SOCK_STREAM) as client:
            client.settimeout(3)
            try:
                client.connect((host, port))
                found[port] = "connected"
            except ConnectionRefusedError:
                continue
            except OSError as error:
                found[port] = word(error)
    return {"found": found}


def wait(path, seconds=60):
    """Until a file is there."""
    deadline = time.monotonic() + seconds
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            return {"end": "timeout"}
        time.sleep(0.01)
    return {"end": "there"}


def take(step):
    step = dict(step)
    action = globals()[step.pop("do")]
    try:
        return action(**step)
    except OSError as error:
        return {"end": word(error)}
    except UnicodeError as error:
        return {"end": str(error)}


def main():
    workers, steps = int(sys.argv[1]), json.loads(sys.argv[2])
    if workers == 1:
        answers = [take(step) for step in steps]
    else:
        with ThreadPoolExecutor(workers) as pool:
            answers = list(pool.map(take, steps))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
