"""The writer agent: told of a note, it reads that in the shared directory and writes a document of it."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHARED = Path("/opt/shared/research")
DOCUMENTS = Path("/opt/agents/writer/documents")
LONGEST = 4096  # bytes of a request


class Requests(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(200 if self.path == "/health" else 404, "ready")

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        if self.path != "/write" or not 0 < length <= LONGEST:
            self.answer(400, "POST /write takes the name of a note")
            return
        name = str(json.loads(self.rfile.read(length))["note"])
        if "/" in name or name.startswith("."):
            self.answer(400, "that is no note")
            return
        note = json.loads((SHARED / name).read_text())
        document = DOCUMENTS / f"{Path(name).stem}.md"
        document.write_text(f"# {note['topic']}\n\n{note['finding']}.\n")
        self.answer(200, document.name)

    def answer(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


print("writing at port 8082", flush=True)
ThreadingHTTPServer(("127.0.0.1", 8082), Requests).serve_forever()
