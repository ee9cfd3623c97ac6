"""The name server of the tests' internet: `dns_server.py ZONE LOG ADDRESS…`.

ZONE is a JSON file, read again whenever it was replaced: name -> what is answered. `*.name` stands for what is below.
  A, AAAA      addresses
  CNAME        the name that this one stands for; its addresses follow in the same answer
  answers      a list of such records instead: the first query of a type gets the first, the last one stays
  rcode        an error, by its name
  silent       true: there is no answer
Unknown names do not exist. LOG gets a line of JSON for every question. Prints "ready" when it listens.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

TTL = 1


class Zone:
    def __init__(self, path: str, log: str) -> None:
        self.path = path
        self.log = open(log, "a", buffering=1)  # noqa: SIM115 - for as long as this program runs
        self.identity: tuple[int, int] | None = None
        self.names: dict[str, Any] = {}
        self.asked: Counter[tuple[str, str]] = Counter()

    def refresh(self) -> None:
        status = os.stat(self.path)
        identity = status.st_ino, status.st_mtime_ns
        if identity != self.identity:
            self.identity = identity
            with open(self.path) as file:
                self.names = json.load(file)
            self.asked.clear()

    def record(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.names.get(name)
        ancestor = name
        while found is None and "." in ancestor:
            ancestor = ancestor.partition(".")[2]
            found = self.names.get(f"*.{ancestor}")
        return found

    def answer(self, wire: bytes, *, udp: bool) -> bytes | None:
        self.refresh()
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.log.write(json.dumps({"time": time.time(), "name": name, "type": kind}) + "\n")
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        owner, record = name, self.record(name)
        for _ in range(8):
            if record is None:
                response.set_rcode(dns.rcode.NXDOMAIN)
                break
            if "answers" in record:
                number = self.asked[owner, kind]
                self.asked[owner, kind] += 1
                record = record["answers"][min(number, len(record["answers"]) - 1)]
            if record.get("silent"):
                return None
            if "rcode" in record:
                response.set_rcode(dns.rcode.from_text(record["rcode"]))
                break
            target = record.get("CNAME")
            if target is None:
                addresses = record.get(kind, [])
                if kind in {"A", "AAAA"} and addresses:
                    response.answer.append(dns.rrset.from_text(f"{owner}.", TTL, "IN", kind, *addresses))
                break
            response.answer.append(dns.rrset.from_text(f"{owner}.", TTL, "IN", "CNAME", f"{target}."))
            owner, record = target, self.record(target)
        return response.to_wire(max_size=1232 if udp else 65535)


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, zone: Zone) -> None:
        self.zone = zone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        answer = self.zone.answer(data, udp=True)
        if answer is not None:
            self.transport.sendto(answer, address)


async def main() -> None:
    zone = Zone(sys.argv[1], sys.argv[2])
    zone.refresh()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(2), "big")
                answer = zone.answer(await reader.readexactly(length), udp=False)
                if answer is not None:
                    writer.write(len(answer).to_bytes(2, "big") + answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    loop = asyncio.get_running_loop()
    for address in sys.argv[3:]:
        await loop.create_datagram_endpoint(lambda: Datagrams(zone), local_addr=(address, 53))
        await asyncio.start_server(stream, address, 53)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
