"""Where programs look for the certificates that they trust, for sandboxes of which some connections are inspected."""

from __future__ import annotations

import glob
import os
from typing import TYPE_CHECKING

from osmoda.egress.certificate_stores import BUNDLES, JAVA
from osmoda.sandbox.granted_paths import within
from osmoda.sandbox.operations import trust_store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from osmoda.sandbox.operations import Operation

# For programs that bring certificates of their own and look at none of the system's.
_VARIABLES = (
    "SSL_CERT_FILE",  # OpenSSL, Go, Ruby, Python's ssl
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "DENO_CERT",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
)


def store(origin: str, shown: Iterable[str]) -> trust_store.TrustStore:
    """What covers the host's stores that lie in the trees and files `shown`."""
    trees = tuple(shown)

    def there(patterns: tuple[str, ...]) -> tuple[bytes, ...]:
        real = {os.path.realpath(path) for pattern in patterns for path in glob.glob(pattern)}
        return tuple(os.fsencode(path) for path in sorted(real) if any(within(path, tree) for tree in trees))

    return trust_store.TrustStore(origin, (*there(BUNDLES), os.fsencode(trust_store.BUNDLE)), there(JAVA))


def variables(operations: Iterable[Operation]) -> dict[str, str]:
    """The variables that name the bundle, where `operations` put one there."""
    if not any(isinstance(operation, trust_store.TrustStore) for operation in operations):
        return {}
    return dict.fromkeys(_VARIABLES, trust_store.BUNDLE)
