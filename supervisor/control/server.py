"""The daemon's control socket: requests and answers as JSON, a line each. Slow and hostile clients stop nobody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from typing import TYPE_CHECKING, Any, Self

import msgspec

from osmoda.host import peer
from osmoda.supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

NAME = "control"
_LONGEST = 1 << 16  # bytes of a request
_MOST_CLIENTS = 128
_BACKLOG = 128
_MOST_UNREAD = 4 << 20  # bytes of answers that a client has not taken; then it is dropped
_PATIENCE = 10.0  # seconds until a client has said what it wants
_MOST_UNITS = 4096


class Request(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a client asks for: a verb, and the units that it is about."""

    verb: str
    units: tuple[str, ...] = ()
    options: dict[str, str | int | bool] = msgspec.field(default_factory=dict)


type Say = Callable[[Mapping[str, Any]], None]
"""Tells a client something before the answer."""

type Verb = Callable[[Request, Say], Awaitable[Mapping[str, Any]]]
"""Carries a request out; its value is the last line of the answer. Raises SupervisorError."""


class Control:
    """The listening end, at `path`; a context manager. `verbs` are what can be asked for."""

    def __init__(self, path: str, verbs: Mapping[str, Verb]) -> None:
        self._path = path
        self._verbs = verbs
        self._clients: set[asyncio.Task[None]] = set()
        self._left: set[asyncio.Future[Mapping[str, Any]]] = set()  # what nobody waits for any more
        self._server: asyncio.Server | None = None
        self._decoder = msgspec.json.Decoder(Request)

    async def __aenter__(self) -> Self:
        # Under its name only once it listens: nobody is refused who sees it. Both names may be of a daemon that was
        # killed, and this one has the lock.
        new = f"{self._path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        before = os.umask(0o177)
        try:
            listener.bind(new)
            listener.listen(_BACKLOG)
            os.rename(new, self._path)
        except BaseException:
            listener.close()
            raise
        finally:
            os.umask(before)
        self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=_LONGEST, backlog=_BACKLOG)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        open_ends: list[asyncio.Future[Any]] = [*self._clients, *self._left]
        for task in open_ends:
            task.cancel()
        await asyncio.gather(*open_ends, return_exceptions=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def _forget(self, work: asyncio.Future[Mapping[str, Any]]) -> None:
        self._left.discard(work)
        if not work.cancelled():
            work.exception()  # whom it was for has gone

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(message: Mapping[str, Any]) -> None:
            if writer.transport.get_write_buffer_size() > _MOST_UNREAD:
                writer.transport.abort()
            if not writer.is_closing():
                # In ASCII: what an answer names, such as the folder of a unit, need not be UTF-8.
                writer.write(json.dumps(msgspec.to_builtins(message)).encode("ascii") + b"\n")

        try:
            reason = peer.refusal(writer.get_extra_info("socket"))
            if not reason and len(self._clients) > _MOST_CLIENTS:
                reason = "too many commands speak to the daemon"
            if reason:
                with contextlib.suppress(ValueError, TimeoutError):
                    # What is left unread when a socket is closed takes the answer with it (unix(7)).
                    await asyncio.wait_for(reader.readline(), _PATIENCE)
                say({"error": reason})
            else:
                say(await self._answer(reader, say))
            await asyncio.wait_for(writer.drain(), _PATIENCE)
        except (OSError, TimeoutError):
            return  # whoever asked has gone
        finally:
            # Not waited for: what a client does not read is not worth it.
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, say: Say) -> Mapping[str, Any]:
        try:
            line = await asyncio.wait_for(reader.readline(), _PATIENCE)
            request = self._decoder.decode(line)
        except (ValueError, TimeoutError) as error:  # a line that is too long, or no request; msgspec's errors too
            return {"error": f"that is no request: {error}"}
        verb = self._verbs.get(request.verb)
        if verb is None or len(request.units) > _MOST_UNITS:
            return {"error": f"there is no verb {request.verb}" if verb is None else "too many units at once"}
        asked = asyncio.ensure_future(verb(request, say))
        gone = asyncio.ensure_future(reader.read(1))
        try:
            # What was begun goes on when its client leaves; only nobody waits for it any more.
            await asyncio.wait((asked, gone), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                self._left.add(asked)
                asked.add_done_callback(self._forget)
                raise ConnectionResetError
            return asked.result()
        except SupervisorError as error:
            return {"error": str(error)}
        except (OSError, asyncio.CancelledError):
            raise
        except Exception as error:  # whoever asked is told of a mistake of this program's, and others are served
            asyncio.get_running_loop().call_exception_handler({"message": f"{request.verb} failed", "exception": error})
            return {"error": f"the daemon has made a mistake in {request.verb}, which it tells of: {error!r}"}
        finally:
            gone.cancel()
