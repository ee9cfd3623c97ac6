"""Runs Python that customers send and gives back what it prints. What keeps that from doing harm is its sandbox."""

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

LONGEST = 65536  # bytes of a request, and of what is given back
SECONDS = 10


class Requests(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        code = str(json.loads(self.rfile.read(min(length, LONGEST)))["code"])
        command = [sys.executable, "-I", "-c", code]
        try:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                timeout=SECONDS,
                check=False,
            )
            printed = done.stdout[:LONGEST].decode(errors="replace")
        except subprocess.TimeoutExpired:
            printed = f"it did not end within {SECONDS} seconds"
        body = json.dumps({"printed": printed}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


print("running at port 8092", flush=True)
HTTPServer(("127.0.0.1", 8092), Requests).serve_forever()
