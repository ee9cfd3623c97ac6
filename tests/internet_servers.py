"""The servers of the tests' internet, as fixtures: each starts when the first test asks for it, and stays.

`web` is nginx with TLS and HTTP/2, and more behind it; `tcp` are ports of no protocol; `git_server` is sshd; `database`
is PostgreSQL; `package_index` is what pip installs from.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.internet import Internet
from tests.servers import nginx

SERVER_UID = 29_999  # the user `git` and `postgres` on the machine of the servers


@pytest.fixture(scope="session")
def web(internet: Internet) -> Internet:
    """HTTP and HTTPS under every name of `names.py`."""
    configuration = nginx.configure(internet.folder, internet.authority)
    repository(internet.folder)
    internet.serve_python("web_server", str(internet.folder / "web.sock"), str(internet.folder / "git"))
    command = ["nginx", "-e", str(internet.folder / "nginx-error.log"), "-c", str(configuration)]
    internet.serve("nginx", *command, ready=lambda: internet.listens(8080))
    return internet


@pytest.fixture(scope="session")
def tcp(internet: Internet) -> Internet:
    """The ports of `tcp_server.py`."""
    internet.serve_python("tcp_server", str(internet.folder / "tcp.jsonl"))
    return internet


def repository(folder: Path) -> Path:
    """A repository with one file and two commits, bare, at `git/project.git`; made once."""
    bare = folder / "git" / "project.git"
    if bare.exists():
        return bare
    script = """
        git init --quiet --initial-branch=main work && cd work
        git config user.name Test && git config user.email test@example.test
        echo one >file && git add file && git commit --quiet --message first
        echo two >file && git commit --quiet --all --message second
        cd .. && mkdir git && git clone --quiet --bare work git/project.git && git -C git/project.git update-server-info
    """
    home = {**os.environ, "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["sh", "-euc", script], cwd=folder, env=home, check=True)
    return bare


@dataclass(frozen=True)
class Ssh:
    """What a client needs: its private key, a line for known_hosts without the name, and what to clone."""

    key: str
    host_key: str
    url: str

    def known_hosts(self, *hosts: str) -> str:
        return "".join(f"{host} {self.host_key}\n" for host in hosts)


def _accounts(internet: Internet) -> None:
    """On the machine of the servers, accounts for servers that are nobody's: made once."""
    folder = internet.folder
    if (folder / "passwd").exists():
        return
    homes = f"::{folder}:/bin/sh\n"
    lines = "".join(f"{name}:x:{SERVER_UID}:{SERVER_UID}{homes}" for name in ("postgres", "git"))
    daemon = "sshd:x:29998:65534::/run/sshd:/usr/sbin/nologin\n"
    (folder / "passwd").write_text(f"root:x:0:0::{folder}:/bin/sh\n{daemon}{lines}")
    (folder / "group").write_text(f"root:x:0:\nnogroup:x:65534:\nservers:x:{SERVER_UID}:\n")
    (folder / "shadow").write_text("root:*:::::::\nsshd:*:::::::\npostgres:*:::::::\ngit:*:::::::\n")
    for name in ("passwd", "group", "shadow"):
        internet.servers.bind(folder / name, Path("/etc", name))
    internet.servers.run("mount", "-t", "tmpfs", "tmpfs", "/run")
    internet.servers.run("mkdir", "/run/sshd", "/run/postgresql")
    internet.servers.run("chown", str(SERVER_UID), "/run/postgresql")


@pytest.fixture(scope="session")
def git_server(internet: Internet) -> Ssh:
    """sshd on port 22: the user `git` may run git, with a key."""
    folder = internet.folder
    _accounts(internet)
    bare = repository(folder)
    subprocess.run(["chown", "-R", str(SERVER_UID), bare], check=True)
    for name in ("host", "client"):
        make_key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / f"{name}-key")]
        subprocess.run(make_key, check=True)
    shutil.copy(folder / "client-key.pub", folder / "authorized-keys")
    configuration = folder / "sshd_config"
    configuration.write_text(
        f"Port 22\nHostKey {folder}/host-key\nAuthorizedKeysFile {folder}/authorized-keys\nPidFile none\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nAllowUsers git\nUseDNS no\nMaxStartups 100\n"
    )
    internet.serve("sshd", "/usr/sbin/sshd", "-D", "-e", "-f", str(configuration), ready=lambda: internet.listens(22))
    host_key = " ".join((folder / "host-key.pub").read_text().split()[:2])
    return Ssh((folder / "client-key").read_text(), host_key, f"ssh://git@git.example.test{bare}")


@dataclass(frozen=True)
class Database:
    """How to reach it; the certificate is that of the name."""

    host: str = "db.example.test"
    user: str = "reader"
    password: str = "not-a-secret"
    name: str = "postgres"


def postgres_programs() -> Path:
    """The folder of the newest PostgreSQL that is installed here: Debian keeps it out of the search path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return found[-1] if found else Path(shutil.which("postgres") or "/usr/bin/postgres").parent


@pytest.fixture(scope="session")
def database(web: Internet) -> Database:
    """PostgreSQL on port 5432, with TLS, and a table `numbers`."""
    internet, folder, found = web, web.folder, Database()
    _accounts(internet)
    programs, cluster = postgres_programs(), folder / "postgres"
    cluster.mkdir()
    os.chown(cluster, SERVER_UID, SERVER_UID)
    as_server = ["setpriv", f"--reuid={SERVER_UID}", f"--regid={SERVER_UID}", "--clear-groups"]
    internet.servers.run(*as_server, f"{programs}/initdb", "-D", str(cluster), "-N", "-U", "postgres", "--auth=trust")
    for kind in ("key", "pem"):
        path = shutil.copy(folder / f"{found.host}.{kind}", cluster / f"server.{kind}")
        os.chown(path, SERVER_UID, SERVER_UID)
    (cluster / "pg_hba.conf").write_text("local all all trust\nhostssl all all all scram-sha-256\n")
    options = {
        "listen_addresses": "*",
        "ssl": "on",
        "ssl_cert_file": "server.pem",
        "ssl_key_file": "server.key",
        "fsync": "off",
        "shared_buffers": "16MB",
        "autovacuum": "off",
        "unix_socket_directories": "/run/postgresql",
    }
    with open(cluster / "postgresql.conf", "a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in options.items())
    answers = [f"{programs}/pg_isready", "-q", "-h", "/run/postgresql"]

    def ready() -> bool:
        return subprocess.run(internet.servers.argv(answers), check=False).returncode == 0

    internet.serve("postgres", *as_server, f"{programs}/postgres", "-D", str(cluster), ready=ready)
    statements = (
        f"create role {found.user} login password '{found.password}';"
        f"create table numbers as select generate_series(1, 1000) as n; grant select on numbers to {found.user};"
    )
    psql = [f"{programs}/psql", "-qX", "-h", "/run/postgresql", "-U", "postgres", "-v", "ON_ERROR_STOP=1"]
    internet.servers.run(*psql, "-c", statements)
    return found


# An sdist that builds itself: no build requirement must be fetched.
BACKEND = """
import base64, hashlib, zipfile
NAME = "sourced-1.0-py3-none-any.whl"
def build_wheel(folder, config_settings=None, metadata_directory=None):
    info = "sourced-1.0.dist-info/"
    files = {
        "sourced.py": "ANSWER = 42\\n",
        info + "METADATA": "Metadata-Version: 2.1\\nName: sourced\\nVersion: 1.0\\n",
        info + "WHEEL": "Wheel-Version: 1.0\\nGenerator: tests\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    with zipfile.ZipFile(folder + "/" + NAME, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
        wheel.writestr(info + "RECORD", "".join(name + ",,\\n" for name in (*files, info + "RECORD")))
    return NAME
"""


# The same with a module in C.
COMPILING_BACKEND = """
import subprocess, sysconfig, zipfile
NAME = "compiled-1.0-py3-none-any.whl"
def build_wheel(folder, config_settings=None, metadata_directory=None):
    include = sysconfig.get_path("include")
    subprocess.run(["cc", "-O0", "-shared", "-fPIC", "-I", include, "-o", "compiled.so", "compiled.c"], check=True)
    info = "compiled-1.0.dist-info/"
    with zipfile.ZipFile(folder + "/" + NAME, "w") as wheel:
        wheel.write("compiled.so")
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: compiled\\nVersion: 1.0\\n")
        tags = "Wheel-Version: 1.0\\nGenerator: tests\\nRoot-Is-Purelib: false\\nTag: py3-none-any\\n"
        wheel.writestr(info + "WHEEL", tags)
        names = ("compiled.so", info + "METADATA", info + "WHEEL", info + "RECORD")
        wheel.writestr(info + "RECORD", "".join(name + ",,\\n" for name in names))
    return NAME
"""
COMPILED = """
#include <Python.h>
static struct PyModuleDef module = { PyModuleDef_HEAD_INIT, "compiled", NULL, 0, NULL, NULL, NULL, NULL, NULL };
PyMODINIT_FUNC PyInit_compiled(void) { return PyModule_Create(&module); }
"""


def _source_distribution(simple: Path, name: str, backend: str, sources: dict[str, str]) -> str:
    source = simple.parent / f"{name}-1.0"
    source.mkdir()
    (source / "backend.py").write_text(backend)
    (source / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (source / "pyproject.toml").write_text(f'{project}[project]\nname = "{name}"\nversion = "1.0"\n')
    for path, text in sources.items():
        (source / path).write_text(text)
    with tarfile.open(simple / f"{name}-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, f"{name}-1.0")
    return f"{name}-1.0.tar.gz"


@pytest.fixture(scope="session")
def package_index(web: Internet) -> str:
    """The URL of an index (PEP 503) with `wheeled`, a wheel, and two source distributions.

    They are `sourced` and, with a module in C, `compiled`.
    """
    simple = web.folder / "simple"
    simple.mkdir()
    with zipfile.ZipFile(simple / "wheeled-1.0-py3-none-any.whl", "w") as wheel:
        info = "wheeled-1.0.dist-info/"
        files = {
            "wheeled.py": "ANSWER = 41\n",
            f"{info}METADATA": "Metadata-Version: 2.1\nName: wheeled\nVersion: 1.0\n",
            f"{info}WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = ""
        for name, content in files.items():
            wheel.writestr(name, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(content)}\n"
        wheel.writestr(f"{info}RECORD", f"{record}{info}RECORD,,\n")
    files = {
        "wheeled": "wheeled-1.0-py3-none-any.whl",
        "sourced": _source_distribution(simple, "sourced", BACKEND, {}),
        "compiled": _source_distribution(simple, "compiled", COMPILING_BACKEND, {"compiled.c": COMPILED}),
    }
    for project, file in files.items():
        digest = hashlib.sha256((simple / file).read_bytes()).hexdigest()
        (simple / project).mkdir()
        (simple / project / "index.html").write_text(
            f'<!DOCTYPE html><html><body><a href="../{file}#sha256={digest}">{file}</a></body></html>\n'
        )
    return "https://pypi.example.test/simple/"
