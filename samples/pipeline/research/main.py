"""The research agent: takes each topic that it is given, writes a note about it, and tells the writer.

Topics come from topics.txt, one a line, so that the sample needs no service elsewhere; what a real one would read, and
from where, goes into [network] allow of its profile.
"""

import http.client
import json
import time
from pathlib import Path

SHARED = Path("/opt/shared/research")
WRITER = ("writer-agent.agent", 8082)


def find_out(topic: str) -> dict[str, str]:
    return {"topic": topic, "finding": f"{topic} has {len(topic)} letters"}


def share(note: dict[str, str]) -> str:
    """Put a note into the shared directory under its own name: whole, or not at all."""
    name = note["topic"].replace("/", "-").replace(" ", "-") + ".json"
    unfinished = SHARED / f".{name}"
    unfinished.write_text(json.dumps(note))
    unfinished.rename(SHARED / name)
    return name


def tell_writer(name: str) -> str:
    connection = http.client.HTTPConnection(*WRITER, timeout=20)
    try:
        connection.request("POST", "/write", json.dumps({"note": name}))
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            raise OSError(f"the writer answers {answer.status}: {text}")
        return text
    finally:
        connection.close()


def main() -> None:
    for topic in Path("topics.txt").read_text().split("\n"):
        if topic.strip():
            name = share(find_out(topic.strip()))
            print(f"{topic}: noted as {name}; the writer has made {tell_writer(name)} of it", flush=True)
    print("no more topics", flush=True)
    while True:
        time.sleep(3600)


main()
