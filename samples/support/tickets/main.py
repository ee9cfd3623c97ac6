"""The database of tickets (sqlite), at port 8090 of the host's own loopback.

POST /ticket adds one, GET /next gives one that has no answer, POST /answer answers it, GET /ticket?ID shows it.
"""

import json
import sqlite3
from http.server import BaseHTTPRequestHandler, HTTPServer

DATABASE = "/opt/agents/tickets/tickets.db"
LONGEST = 65536  # bytes of a request


class Requests(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path, _, number = self.path.partition("?")
        if path == "/next":
            found = database.execute("SELECT id, question, code FROM tickets WHERE answer IS NULL LIMIT 1").fetchone()
            self.answer(200, dict(zip(("id", "question", "code"), found, strict=True)) if found else {})
        elif path == "/ticket" and number.isdigit():
            found = database.execute("SELECT answer FROM tickets WHERE id = ?", (int(number),)).fetchone()
            self.answer(200, {"answer": found[0]} if found else {})
        else:
            self.answer(404, {})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        sent = json.loads(self.rfile.read(min(length, LONGEST)))
        if self.path == "/ticket":
            values = (str(sent["question"]), str(sent.get("code", "")))
            row = database.execute("INSERT INTO tickets (question, code) VALUES (?, ?)", values)
            self.answer(200, {"id": row.lastrowid})
        elif self.path == "/answer":
            values = (str(sent["answer"]), int(sent["id"]))
            database.execute("UPDATE tickets SET answer = ? WHERE id = ? AND answer IS NULL", values)
            self.answer(200, {})
        else:
            self.answer(404, {})
        database.commit()

    def answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


database = sqlite3.connect(DATABASE)
database.execute(
    "CREATE TABLE IF NOT EXISTS tickets"
    " (id INTEGER PRIMARY KEY, question TEXT NOT NULL, code TEXT NOT NULL, answer TEXT)"
)
print("tickets at port 8090", flush=True)
HTTPServer(("127.0.0.1", 8090), Requests).serve_forever()
