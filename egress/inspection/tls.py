"""TLS on both sides of a connection that is looked into.

Contexts are kept, and with them what is needed to resume a session: making one costs more than a handshake. mitmproxy's
own add-on is not used: it keeps its authority in files, and has options that nobody here may set.
"""

from __future__ import annotations

import functools
import ipaddress
import os
from typing import TYPE_CHECKING, Any

from OpenSSL import SSL

from osmoda.egress import trust

if TYPE_CHECKING:
    from collections.abc import Sequence

    from osmoda.egress.authority import Authority

PROTOCOLS = (b"h2", b"http/1.1")

_MOST_CONTEXTS = 1024
# RFC 9325, section 4.2: forward secrecy and authenticated encryption. TLS 1.3 has nothing else.
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
_OPTIONS = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION
_NO_PARTIAL_WILDCARDS, _NEVER_CHECK_SUBJECT = 0x4, 0x20  # X509_check_host(3)


class Contexts:
    """What servers are to be, and what clients are shown, by name. For one thread."""

    def __init__(self) -> None:
        self._shown: dict[tuple[Authority, str], SSL.Context] = {}

    def for_client(self, authority: Authority, name: str) -> SSL.Connection:
        """The server's end of a handshake with a client that wants `name`."""
        context = self._shown.get((authority, name))
        if context is None:
            if len(self._shown) >= _MOST_CONTEXTS:
                del self._shown[next(iter(self._shown))]
            context = self._shown[authority, name] = _shown(authority, name)
        connection = SSL.Connection(context)
        connection.set_accept_state()
        return connection

    def for_server(self, name: str, offered: Sequence[bytes], authorities: str) -> SSL.Connection:
        """The client's end of a handshake with a server that must prove that it is `name`."""
        path = authorities or trust.host_bundle()
        status = os.stat(path)
        connection = SSL.Connection(_trusting(path, status.st_mtime_ns, status.st_ino))
        parameters = SSL._lib.SSL_get0_param(connection._ssl)  # type: ignore[attr-defined]
        flags = _NO_PARTIAL_WILDCARDS | _NEVER_CHECK_SUBJECT
        SSL._lib.X509_VERIFY_PARAM_set_hostflags(parameters, flags)  # type: ignore[attr-defined]
        try:
            address = ipaddress.ip_address(name).packed
            done = SSL._lib.X509_VERIFY_PARAM_set1_ip(parameters, address, len(address))  # type: ignore[attr-defined]
        except ValueError:
            host = name.encode("ascii")
            connection.set_tlsext_host_name(host)
            done = SSL._lib.X509_VERIFY_PARAM_set1_host(parameters, host, len(host))  # type: ignore[attr-defined]
        if done != 1:
            raise ValueError(f"{name} cannot be checked against a certificate")
        if offered:
            connection.set_alpn_protos(list(offered))
        connection.set_connect_state()
        return connection


def _context(method: int) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(_OPTIONS)
    context.set_cipher_list(_CIPHERS)
    return context


def _shown(authority: Authority, name: str) -> SSL.Context:
    context = _context(SSL.TLS_SERVER_METHOD)
    context.use_certificate(authority.leaf(name))
    context.use_privatekey(authority.leaf_key)
    context.set_session_id(b"osmoda")
    context.set_alpn_select_callback(_select)
    return context


@functools.lru_cache(16)
def _trusting(path: str, changed: int, inode: int) -> SSL.Context:  # noqa: ARG001 - a bundle that is updated is read anew
    context = _context(SSL.TLS_CLIENT_METHOD)
    context.load_verify_locations(path)
    context.set_verify(SSL.VERIFY_PEER, None)
    return context


def _select(connection: SSL.Connection, offered: list[bytes]) -> Any:  # noqa: ARG001 - a callback
    return next((protocol for protocol in offered if protocol in PROTOCOLS), SSL.NO_OVERLAPPING_PROTOCOLS)
