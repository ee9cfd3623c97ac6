"""Where a host's programs find the certificates that they trust, by distribution."""

from __future__ import annotations

BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Arch, Alpine
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",
    "/etc/ca-certificates/extracted/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/certs/ca-bundle.crt",
    "/etc/pki/tls/cert.pem",
)
"""PEM; the first that is there holds what the host's programs trust, and most others are links to it."""

JAVA = (
    "/etc/ssl/certs/java/cacerts",
    "/etc/pki/java/cacerts",
    "/etc/pki/ca-trust/extracted/java/cacerts",
    "/usr/lib/jvm/*/lib/security/cacerts",
)
"""Key stores of Java, as patterns (glob(7))."""
