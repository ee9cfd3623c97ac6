"""Answers tickets: has the runner run what a ticket brings, asks the model, and writes the answer into the database."""

import http.client
import json
import time

TICKETS = ("host.osmoda", 8090)
MODEL = ("host.osmoda", 8099)
RUNNER = ("support-runner.agent", 8092)


def ask(place: tuple[str, int], method: str, path: str, value: object = None) -> dict[str, str]:
    connection = http.client.HTTPConnection(*place, timeout=20)
    try:
        connection.request(method, path, json.dumps(value) if value is not None else None)
        answer: dict[str, str] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()


def answer(ticket: dict[str, str]) -> str:
    printed = ask(RUNNER, "POST", "/run", {"code": ticket["code"]})["printed"] if ticket["code"] else ""
    prompt = f"{ticket['question']}\n{printed}".strip()
    return ask(MODEL, "POST", "/v1/complete", {"prompt": prompt})["text"]


def main() -> None:
    print("answering", flush=True)
    while True:
        ticket = ask(TICKETS, "GET", "/next")
        if ticket:
            ask(TICKETS, "POST", "/answer", {"id": ticket["id"], "answer": answer(ticket)})
            print(f"ticket {ticket['id']} is answered", flush=True)
        else:
            time.sleep(0.2)


main()
