"""What a sandbox whose connections are looked into is to trust: the host's certificates, and its own authority."""

from __future__ import annotations

import functools
import glob
import os
import re
import warnings
from typing import TYPE_CHECKING

from cryptography import x509

from osmoda.egress import memory_file
from osmoda.egress.authority import Authority, bundle, java_store
from osmoda.egress.certificate_stores import BUNDLES, JAVA

if TYPE_CHECKING:
    from osmoda.egress.session import Session

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def prepare(session: Session, kept: bytes) -> tuple[bytes, tuple[int, ...]]:
    """Give `session` its authority: the one in `kept`, which an earlier gateway made, or a new one when that is empty.

    Returns what to keep of it for a later gateway, and descriptors of what the sandbox is to trust: the PEM bundle,
    then the Java store where the host has one. They are the caller's to close. Raises ValueError, OSError.
    """
    authority = Authority.load(kept) if kept else Authority.new()
    path = host_bundle()
    content = _read(path) if path else b""
    contents = [bundle(content, authority.pem)]
    if any(glob.glob(place) for place in JAVA):
        contents.append(java_store(_certificates(content), authority.pem))
    descriptors: list[int] = []
    try:
        for name, one in zip(("certificates", "java"), contents, strict=False):
            descriptors.append(memory_file.create(name, one))
    except OSError:
        for fd in descriptors:
            os.close(fd)
        raise
    session.authority = authority
    return authority.dump(), tuple(descriptors)


def host_bundle() -> str:
    """The path of what the host's own programs trust; empty when it has no bundle in a usual place."""
    return next(filter(os.path.isfile, BUNDLES), "")


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@functools.lru_cache(1)
def _certificates(content: bytes) -> tuple[x509.Certificate, ...]:
    """Those of a bundle that can be read: a host may trust some that are older than today's rules."""
    found = []
    with warnings.catch_warnings(action="ignore"):
        for match in _CERTIFICATE.finditer(content):
            try:
                found.append(x509.load_pem_x509_certificate(match[0]))
            except ValueError:
                continue
    return tuple(found)
