"""What nginx cannot say by itself, behind it: `web_server.py SOCKET GIT`. Prints "ready" when it listens.

/echo (what the request was, as JSON), /socket (a websocket that echoes), /events (server-sent events), /bytes/N,
/status/N, /cut/N (promises more than it sends), /redirect?to=URL, and the smart protocol of git below /repositories.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from typing import Any

from aiohttp import WSMsgType, web

BLOCK = bytes(65536)


async def echo(request: web.Request) -> web.Response:
    digest, size, start = hashlib.sha256(), 0, b""
    async for chunk in request.content.iter_any():
        digest.update(chunk)
        size += len(chunk)
        start = (start + chunk)[:4096]
    seen = {
        "method": request.method,
        "target": request.raw_path,
        "headers": [[name, value] for name, value in request.headers.items()],
        "size": size,
        "sha256": digest.hexdigest(),
        "body": start.decode("latin-1"),
    }
    return web.json_response(seen)


async def websocket(request: web.Request) -> web.WebSocketResponse:
    answer = web.WebSocketResponse()
    await answer.prepare(request)
    async for message in answer:
        if message.type == WSMsgType.TEXT:
            await answer.send_str(message.data)
        elif message.type == WSMsgType.BINARY:
            await answer.send_bytes(message.data)
    return answer


async def events(request: web.Request) -> web.StreamResponse:
    """`count` events, one each `pause` seconds; each goes out by itself."""
    count, pause = int(request.query.get("count", "3")), float(request.query.get("pause", "0.05"))
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await answer.prepare(request)
    for number in range(count):
        await answer.write(b"id: %d\ndata: event %d\n\n" % (number, number))
        await asyncio.sleep(pause)
    return answer


async def many_bytes(request: web.Request) -> web.StreamResponse:
    left = int(request.match_info["count"])
    answer = web.StreamResponse(headers={"Content-Length": str(left)})
    await answer.prepare(request)
    while left:
        part = min(left, len(BLOCK))
        await answer.write(BLOCK[:part])
        left -= part
    return answer


async def cut(request: web.Request) -> web.StreamResponse:
    count = int(request.match_info["count"])
    answer = web.StreamResponse(headers={"Content-Length": str(count + 1000)})
    await answer.prepare(request)
    await answer.write(BLOCK[:count])
    assert request.transport is not None
    request.transport.abort()
    return answer


async def status(request: web.Request) -> web.Response:
    return web.Response(status=int(request.match_info["number"]), text=request.match_info["number"])


async def redirect(request: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": request.query["to"]})


async def git(request: web.Request) -> web.Response:
    """git-http-backend(1), as any web server runs a CGI program (RFC 3875)."""
    body = await request.read()
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_PROJECT_ROOT": sys.argv[2],
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "REQUEST_METHOD": request.method,
        "PATH_INFO": request.match_info["path"],
        "QUERY_STRING": request.query_string,
        "CONTENT_TYPE": request.headers.get("Content-Type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
    }
    process = await asyncio.create_subprocess_exec(
        "git", "http-backend", env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate(body)
    head, _, content = output.partition(b"\r\n\r\n")
    headers: dict[str, Any] = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
    code = int(headers.pop("Status", "200 OK").split()[0])
    return web.Response(status=code, headers=headers, body=content)


async def main() -> None:
    application = web.Application(client_max_size=1 << 40)
    application.router.add_route("*", "/echo{rest:.*}", echo)
    application.router.add_get("/socket", websocket)
    application.router.add_get("/events", events)
    application.router.add_get("/bytes/{count:[0-9]+}", many_bytes)
    application.router.add_get("/cut/{count:[0-9]+}", cut)
    application.router.add_get("/status/{number:[0-9]+}", status)
    application.router.add_get("/redirect", redirect)
    application.router.add_route("*", "/repositories{path:/.*}", git)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.UnixSite(runner, sys.argv[1]).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
