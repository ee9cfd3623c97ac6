"""A sandbox's certificate authority, and what is to trust it: read by OpenSSL and by Java themselves."""

from __future__ import annotations

import datetime as dt
import os
import socket
import ssl
import subprocess
import threading
import warnings
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from osmoda.egress import trust
from osmoda.egress.authority import DAYS, MOST_LEAVES, Authority, bundle, java_store

HOST = trust.host_bundle()


def names(certificate):
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def server_files(authority, name, folder):
    chain = folder / "server.pem"
    key = authority.leaf_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain.write_bytes(key + authority.leaf(name).public_bytes(serialization.Encoding.PEM))
    return str(chain)


class Server:
    """Answers `200` to each TLS connection, with a leaf of an authority."""

    def __init__(self, authority, name, folder):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(server_files(authority, name, folder))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        while True:
            client, _ = self.listener.accept()
            with client:
                try:
                    with self.context.wrap_socket(client, server_side=True) as tls:
                        first = tls.recv(4096)
                        if first == b"end":
                            return
                        tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                except OSError:
                    continue

    def close(self):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", self.port)) as raw, context.wrap_socket(raw) as tls:
            tls.sendall(b"end")
        self.thread.join(10)
        self.listener.close()


def handshake(port, name, trusted):
    context = ssl.create_default_context(cadata=trusted.decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_connection(("127.0.0.1", port)) as raw, context.wrap_socket(raw, server_hostname=name) as tls:
        tls.sendall(b"GET / HTTP/1.1\r\n\r\n")
        return tls.recv(100)


@pytest.mark.parametrize("name", ["example.com", "127.0.0.1", ("a" * 60 + ".") * 4 + "example"])
def test_a_strict_client_accepts_a_leaf_for_its_name_and_for_no_other(tmp_path, name):
    authority = Authority.new()
    server = Server(authority, name, tmp_path)
    try:
        assert handshake(server.port, name, authority.pem).startswith(b"HTTP/1.1 200")
        with pytest.raises(ssl.SSLCertVerificationError, match="match"):
            handshake(server.port, "other.example", authority.pem)
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(server.port, name, Authority.new().pem)
    finally:
        server.close()


def test_it_lasts_days_and_signs_no_other_authority():
    authority = Authority.new()
    certificate = authority.certificate
    now = dt.datetime.now(dt.UTC)
    assert certificate.not_valid_before_utc < now < certificate.not_valid_after_utc
    assert certificate.not_valid_after_utc - now <= dt.timedelta(days=DAYS)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    leaf = authority.leaf("example.com")
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.not_valid_after_utc <= certificate.not_valid_after_utc
    leaf.verify_directly_issued_by(certificate)


def test_no_two_are_alike():
    one, other = Authority.new(), Authority.new()
    assert one.certificate.subject != other.certificate.subject
    assert one.certificate.public_key() != other.certificate.public_key()


def test_a_kept_one_goes_on():
    authority = Authority.new()
    again = Authority.load(authority.dump())
    assert again.pem == authority.pem
    again.leaf("example.com").verify_directly_issued_by(authority.certificate)


@pytest.mark.parametrize("damaged", [b"", b"x", lambda one, other: other[:50], lambda one, other: b"\0" + one])
def test_what_is_no_authority_is_refused(damaged):
    if callable(damaged):
        damaged = damaged(Authority.new().dump(), Authority.new().dump())
    with pytest.raises(ValueError, match="kept certificate authority"):
        Authority.load(damaged)


def test_a_key_that_is_not_its_own_is_refused():
    other = Authority(Authority.new()._key, Authority.new().certificate)
    with pytest.raises(ValueError, match="not its own"):
        Authority.load(other.dump())


def test_leaves_are_kept_but_not_without_end():
    authority = Authority.new()
    first = authority.leaf("a.example")
    assert authority.leaf("a.example") is first
    for index in range(MOST_LEAVES - 1):
        authority._leaves[f"{index}.example"] = first
    authority.leaf("b.example")
    assert len(authority._leaves) == MOST_LEAVES
    assert "a.example" not in authority._leaves
    assert names(authority.leaf("b.example")).get_values_for_type(x509.DNSName) == ["b.example"]


def test_a_bundle_is_the_hosts_and_one_more():
    authority = Authority.new()
    host = Authority.new().pem
    assert bundle(host.rstrip(b"\n"), authority.pem) == host + authority.pem
    assert bundle(b"", authority.pem) == authority.pem
    assert len(x509.load_pem_x509_certificates(bundle(host, authority.pem))) == 2


@pytest.mark.parametrize("password", [["-storepass", "changeit"], []])
def test_java_opens_the_store_with_and_without_a_password(tmp_path, password):
    host = [Authority.new().certificate for _ in range(3)]
    (tmp_path / "cacerts").write_bytes(java_store(host, Authority.new().pem))
    command = ["keytool", "-J-Duser.language=en", "-list", "-keystore", str(tmp_path / "cacerts"), *password]
    done = subprocess.run(command, check=False, input="\n", capture_output=True, text=True, timeout=60)
    assert "contains 4 entries" in done.stdout


CLIENT = """
public class Client {
    public static void main(String[] arguments) throws Exception {
        var connection = (java.net.HttpURLConnection) new java.net.URL(arguments[0]).openConnection();
        System.out.println(connection.getResponseCode());
    }
}
"""


@pytest.mark.parametrize("options", [[], ["-Djavax.net.ssl.trustStorePassword=changeit"]])
def test_a_java_program_trusts_it(tmp_path, options):
    authority = Authority.new()
    (tmp_path / "cacerts").write_bytes(java_store([Authority.new().certificate], authority.pem))
    (tmp_path / "Client.java").write_text(CLIENT)
    server = Server(authority, "localhost", tmp_path)
    try:
        command = ["java", f"-Djavax.net.ssl.trustStore={tmp_path}/cacerts", *options, str(tmp_path / "Client.java")]
        command.append(f"https://localhost:{server.port}/")
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert done.stdout == "200\n", done.stderr
    finally:
        server.close()


def prepared(kept=b""):
    session = SimpleNamespace(authority=None)
    dumped, descriptors = trust.prepare(session, kept)
    contents = []
    for fd in descriptors:
        contents.append(os.pread(fd, 1 << 24, 0))
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0
        assert not os.get_inheritable(fd)
        os.close(fd)
    return session.authority, dumped, contents


def test_a_session_is_given_an_authority_and_what_to_trust():
    authority, dumped, contents = prepared()
    assert contents[0].endswith(authority.pem)
    if HOST:
        with open(HOST, "rb") as file:
            assert contents[0].startswith(file.read())
    assert len(contents) == (2 if any(map(os.path.exists, trust.JAVA)) else 1)
    again, dumped_again, contents_again = prepared(dumped)
    assert (again.pem, dumped_again, contents_again[0]) == (authority.pem, dumped, contents[0])


def test_without_java_there_is_no_java_store(monkeypatch):
    monkeypatch.setattr(trust, "JAVA", ())
    assert len(prepared()[2]) == 1


def test_a_host_without_certificates_trusts_only_the_authority(monkeypatch):
    monkeypatch.setattr(trust, "BUNDLES", ())
    authority, _, contents = prepared()
    assert contents[0] == authority.pem


def test_certificates_that_cannot_be_read_are_left_out_of_the_java_store():
    broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    pem = Authority.new().pem
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(trust._certificates(broken + pem + broken)) == 1


def test_an_older_kernel_has_no_seal_against_execution(monkeypatch):
    made = os.memfd_create

    def refusing(name, flags):
        if flags & 0x8:
            raise OSError(22, "Invalid argument")
        return made(name, flags)

    monkeypatch.setattr(os, "memfd_create", refusing)
    authority, _, contents = prepared()
    assert contents[0].endswith(authority.pem)
