"""The configuration of nginx on the tests' internet, and the files it serves."""

from __future__ import annotations

import os
from pathlib import Path

from tests.servers import names
from tests.servers.certificates import TestAuthority

LARGE = 64 << 20  # bytes of /large

_MAIN = """
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log warn;
worker_rlimit_nofile 20000;
events {{ worker_connections 10000; }}
http {{
  log_format witness escape=json '{{"time":$msec,"server":"$server_name","sni":"$ssl_server_name","host":"$host",'
    '"method":"$request_method","uri":"$request_uri","protocol":"$server_protocol","status":$status,'
    '"address":"$server_addr","port":$server_port,"authorization":"$http_authorization"}}';
  access_log {folder}/access.jsonl witness;
  default_type text/plain;
  types {{ text/html html; }}
  client_body_temp_path {folder}/temporary;
  proxy_temp_path {folder}/temporary;
  fastcgi_temp_path {folder}/temporary;
  uwsgi_temp_path {folder}/temporary;
  scgi_temp_path {folder}/temporary;
  client_max_body_size 0;
  keepalive_requests 1000000;
  server_names_hash_bucket_size 128;
  sendfile on;
  tcp_nopush on;
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_session_tickets off;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
{servers}
}}
"""

# `listen` differs for the host without HTTP/2, which has addresses of its own: nginx decides by the socket.
_SERVER = """
  server {{
    server_name {server_name};
    {listen}
    ssl_certificate {folder}/{certificate}.pem;
    ssl_certificate_key {folder}/{certificate}.key;
    root {folder}/pages;
    location / {{ try_files $uri $uri/index.html @said; }}
    location @said {{ return 200 "$server_name says $request_method $request_uri\\n"; }}
    location /simple/ {{ root {folder}; index index.html; default_type text/html; }}
    location /dumb/ {{ alias {folder}/git/; }}
    location ~ ^/(echo|socket|events|bytes/|status/|cut/|redirect|repositories/) {{
      proxy_pass http://unix:{folder}/web.sock;
      proxy_http_version 1.1;
      proxy_set_header Host $host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_buffering off;
      proxy_request_buffering off;
    }}
  }}
"""

_PORTS = (("443", " ssl http2"), ("8443", " ssl http2"), ("80", ""), ("8080", ""))


def _listen(server_name: str) -> str:
    default = " default_server backlog=4096" if server_name == "_" else ""
    # Not reuseport: one process serves, and what it accepts is in the order of arrival.
    lines = [f"listen {host}:{port}{kind}{default};" for host in ("0.0.0.0", "[::]") for port, kind in _PORTS]
    if server_name == "h1.example.test":
        lines += [f"listen {names.HTTP1_IPV4}:443 ssl;", f"listen [{names.HTTP1_IPV6}]:443 ssl;"]
        lines = lines[2:]
    return " ".join(lines)


def configure(folder: Path, authority: TestAuthority) -> Path:
    """Write certificates, pages and the configuration below `folder`; its path."""
    servers = []

    def serve(server_name: str, certificate: str) -> None:
        servers.append(
            _SERVER.format(server_name=server_name, listen=_listen(server_name), folder=folder, certificate=certificate)
        )

    addresses = [names.NOBODY_IPV4, names.NOBODY_IPV6, *_addresses(names.MISLEADING)]
    authority.write(folder, "nobody", ["nobody.example.test", *addresses])
    serve("_", "nobody")
    for name in (*names.SITES, *names.MISLEADING):
        authority.write(folder, name, [name])
        serve(name, name)
    authority.write(folder, "wild", ["wild.test", "*.wild.test", "notwild.test", "*.wild.test.evil.test"])
    serve("wild.test *.wild.test", "wild")
    serve("notwild.test", "wild")
    serve("*.wild.test.evil.test", "wild")
    authority.write(folder, names.EXPIRED, [names.EXPIRED], expired=True)
    authority.write(folder, names.WRONG, ["right.example.test"])
    TestAuthority.make("nobody's authority").write(folder, names.SELF_SIGNED, [names.SELF_SIGNED])
    for name in names.INVALID:
        serve(name, name)

    pages = folder / "pages"
    pages.mkdir()
    (folder / "temporary").mkdir()
    (pages / "small").write_bytes(b"x" * 1023 + b"\n")
    with open(pages / "large", "wb") as file:
        os.truncate(file.fileno(), LARGE)
    path = folder / "nginx.conf"
    path.write_text(_MAIN.format(folder=folder, servers="".join(servers)))
    return path


def _addresses(table: dict[str, dict[str, list[str]]]) -> list[str]:
    found = {a for record in table.values() for kind in ("A", "AAAA") for a in record.get(kind, ())}
    return sorted(found)
