"""What systemd's directives of a unit take away, tried from inside the unit's sandbox.

Each attempt first succeeds: outside, where the sandbox stops it anyway and the directive says so, or in the sandbox of
the same unit without the directive, where that is what stops it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import tempfile
import textwrap
import venv
from pathlib import Path

import pytest

from osmoda.host import features
from osmoda.sandbox import PIPE, Sandbox, close
from osmoda.supervisor.confining.confinement import confine
from tests.written_units import unit

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="most attempts succeed outside only as root")

PYTHON = "/usr/bin/python3"
PRELUDE = """
import ctypes, errno, mmap, os, resource, socket, stat, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    result = getattr(libc, name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result
def attempt():
{attempt}
try:
    print("reached", attempt())
except (OSError, MemoryError, RuntimeError) as error:
    print("refused", errno.errorcode.get(getattr(error, "errno", None) or 0, type(error).__name__))
"""


def program(attempt):
    return [PYTHON, "-I", "-c", PRELUDE.format(attempt=textwrap.indent(textwrap.dedent(attempt).strip(), "    "))]


def inside(tmp_path, profile, lines, attempt):
    """What `attempt` prints in the sandbox of a unit with `lines`."""
    file = tmp_path / "agent.toml"
    file.write_text(f"schema = 1\n{profile}\n")
    text = f"[Service]\n{lines}\n[X-Osmoda]\nProfile={file}\n"
    confined = confine(unit(text, tmp_path / "agent.service", write=True))
    sandbox = Sandbox(confined.profile, workspace=confined.workspace or None, agent="agent")
    result = sandbox.run(program(attempt), capture_output=True, timeout=60, cwd="/")
    return result.stdout.decode() or f"ended {result.status}"


def outside(attempt):
    return subprocess.run(program(attempt), capture_output=True, text=True, timeout=60, check=False).stdout


@pytest.fixture(autouse=True)
def launcher(no_leftovers):
    """Ends this process's launcher with each test."""
    yield
    close()


@pytest.fixture
def place():
    """A folder that is not below /tmp."""
    folder = Path(tempfile.mkdtemp(prefix="osmoda-test-", dir="/var/log"))
    folder.chmod(0o755)
    (folder / "part").mkdir()
    (folder / "file").write_text("content")
    (folder / "part" / "file").write_text("part")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def home():
    folder = Path(tempfile.mkdtemp(prefix="osmoda-test-", dir="/home"))
    (folder / "file").write_text("content")
    yield folder
    shutil.rmtree(folder)


# What a sandbox stops anyway: the same attempt succeeds outside.


MAKE = "name = {0!r} + str(os.getpid()); os.mkdir(name); os.rmdir(name)"
STATUS = "'{0}' in open('/proc/self/status').read() or sys.exit(print('refused other'))"
DEVICE = """
path = f'/tmp/osmoda-test-{os.getpid()}'
os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
os.unlink(path)
"""
MODULE = """
try:
    call('syscall', 176, b'osmoda_test', 0)  # delete_module
except OSError as error:
    if error.errno != errno.ENOENT:
        raise
"""
CLOCK = """
try:
    call('syscall', 227, 0, (ctypes.c_long * 2)(0, -1))  # clock_settime, to a time that there is not
except OSError as error:
    if error.errno != errno.EINVAL:
        raise
"""
HOSTNAME = """
name = os.uname().nodename.encode()
call('sethostname', name, len(name))
"""
SET_USER_ID = """
path = f'/tmp/osmoda-test-{os.getpid()}'
os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
try:
    os.chmod(path, 0o4755)
finally:
    os.unlink(path)
"""
BOUNDING = "assert int(open('/proc/self/status').read().split('CapBnd:')[1].split()[0], 16), sys.exit(print('refused'))"

BPF = """
try:
    call('syscall', 321, -1, None, 0)  # bpf(2), with a command that there is not
except OSError as error:
    if error.errno != errno.EINVAL:
        raise
"""
# mov eax, 20; int 0x80; ret: getpid(2) of the 32-bit ABI
OTHER_ABI = """
import signal
signal.signal(signal.SIGSEGV, lambda *_: os._exit(print('refused', flush=True) or 0))
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex('b814000000cd80c3'))
result = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
if result < 0:
    raise OSError(-result, 'getpid')
"""

SATISFIED = {
    "SystemCallArchitectures=native": OTHER_ABI,
    "PrivateBPF=yes": BPF,
    "MountAPIVFS=yes": "os.close(os.open('/proc/sys/vm/swappiness', os.O_WRONLY))",
    "ProtectSystem=yes": MAKE.format("/usr/osmoda-test-"),
    "ProtectSystem=full": MAKE.format("/etc/osmoda-test-"),
    "PrivateDevices=yes": DEVICE,
    "NoNewPrivileges=yes": STATUS.format("NoNewPrivs:\\t0"),
    "CapabilityBoundingSet=CAP_NET_BIND_SERVICE": BOUNDING,
    "ProtectKernelTunables=yes": "os.close(os.open('/proc/sys/vm/swappiness', os.O_WRONLY))",
    "ProtectKernelModules=yes": MODULE,
    "ProtectKernelLogs=yes": "call('klogctl', 10, None, 0)",
    "ProtectClock=yes": CLOCK,
    "ProtectControlGroups=yes": "os.listdir('/sys/fs/cgroup')",
    "ProtectHostname=yes": HOSTNAME,
    "RestrictNamespaces=yes": "call('unshare', 0x10000000)",
    "RestrictNamespaces=uts": "call('unshare', 0x04000000)",
    "RestrictRealtime=yes": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    "RestrictSUIDSGID=yes": SET_USER_ID,
    "LockPersonality=yes": "call('personality', 8)",
    "PrivateUsers=yes": "'4294967295' in open('/proc/self/uid_map').read() or sys.exit(print('refused other'))",
    "SystemCallFilter=~@mount": "call('umount2', b'/nowhere', 0)",
    "KeyringMode=private": "call('syscall', 248, b'user', b'osmoda-test', b'x', 1, -1)",  # add_key
    "DevicePolicy=closed": "os.close(os.open('/dev/kmsg', os.O_RDONLY | os.O_NONBLOCK))",
}
NOT_THERE = {"SystemCallFilter=~@mount": "ENOENT"}


@pytest.mark.parametrize("line", SATISFIED)
def test_what_a_sandbox_stops_anyway(tmp_path, line):
    attempt = SATISFIED[line]
    if line.startswith("SystemCallArchitectures") and os.uname().machine != "x86_64":
        pytest.skip("the other ABI that is tried is x86's")
    control = outside(attempt)
    if "ENOSYS" in control:
        pytest.skip("this kernel has no such call")
    assert control.startswith("reached") or NOT_THERE.get(line, "-") in control, control
    answer = inside(tmp_path, "tier = 1", line, attempt)
    assert answer.startswith("refused"), answer
    assert NOT_THERE.get(line, "-") not in answer


def test_a_uid_and_a_share_of_the_cpu_as_the_host_sees_them(tmp_path):
    """What cannot be seen from inside: who it is on the host, and its control group."""
    file = tmp_path / "agent.toml"
    file.write_text("schema = 1\ntier = 1\n")
    lines = "DynamicUser=yes\nCPUQuota=50%" if "cpu" in features.probe().controllers else "DynamicUser=yes"
    text = f"[Service]\n{lines}\n[X-Osmoda]\nProfile={file}\n"
    confined = confine(unit(text, tmp_path / "agent.service", write=True))
    command = [PYTHON, "-I", "-c", "import sys\nprint(flush=True)\nsys.stdin.read()", f"osmoda-test-{os.getpid()}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as control:
        assert control.stdout.readline() == b"\n"
        assert seen(command) == (0, None)
        control.communicate()
    with Sandbox(confined.profile, agent="agent").popen(command, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout.readline() == b"\n"
        uid, quota = seen(command)
        process.communicate()
    assert uid >= 1879048192
    assert quota == ("50000" if "CPUQuota" in lines else None)


def seen(command):
    """Uid and CPU quota of the one process with this command line that is not the tests' own."""
    wanted = "\0".join(command).encode() + b"\0"
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if Path(f"/proc/{entry}/cmdline").read_bytes() != wanted:
                continue
            groups = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{entry}/cgroup").read_text().splitlines())
            return os.stat(f"/proc/{entry}").st_uid, quota_of(groups)
        except OSError:
            continue  # it has ended meanwhile
    raise AssertionError(f"{command} does not run")


def quota_of(groups):
    """The CPU time in each 100 ms, in microseconds, where osmoda has made a group."""
    for controllers, path in groups.items():
        if "osmoda" in path and (controllers == "" or "cpu" in controllers.split(",")):
            for name in (f"/sys/fs/cgroup/cpu{path}/cpu.cfs_quota_us", f"/sys/fs/cgroup{path}/cpu.max"):
                if os.path.exists(name):
                    return Path(name).read_text().split()[0]
    return None


def test_processes_of_the_host_are_not_there(tmp_path):
    own = f"/proc/{os.getpid()}/cmdline"
    line = Path(own).read_bytes()
    attempt = f"open({own!r}, 'rb').read() == {line!r} or sys.exit(print('refused other'))"
    assert outside(attempt).startswith("reached")
    assert inside(tmp_path, "tier = 1", "ProtectProc=invisible\nPrivatePIDs=yes", attempt).startswith("refused")


def test_shared_memory_of_the_host_is_not_there(tmp_path):
    libc = ctypes.CDLL(None, use_errno=True)
    key = 0x05D00000 + os.getpid() % 0xFFFFF
    segment = libc.shmget(key, 4096, 0o1666)
    assert segment >= 0
    try:
        attempt = f"call('shmget', {key}, 0, 0)"
        assert outside(attempt).startswith("reached")
        assert inside(tmp_path, "tier = 1", "PrivateIPC=yes\nRemoveIPC=yes", attempt) == "refused ENOENT\n"
    finally:
        libc.shmctl(segment, 0, None)


def test_mounts_are_its_own(tmp_path):
    here = os.readlink("/proc/self/ns/mnt")
    attempt = f"assert os.readlink('/proc/self/ns/mnt') == {here!r} or sys.exit(print('refused other'))"
    assert outside(attempt).startswith("reached")
    assert inside(tmp_path, "tier = 1", "PrivateMounts=yes\nMountFlags=slave", attempt) == "refused other\n"


# What the directive takes away: the same attempt succeeds in the sandbox of the unit without it.

WRITE = "open({folder!r} + '/new', 'w').close(); os.unlink({folder!r} + '/new')"
READ = "return open({folder!r} + '/file').read()"
PART = "return open({folder!r} + '/part/file').read()"
CONNECT = "socket.create_connection(('host.osmoda', {port}), 30).close()"
LOOPBACK = """
server = socket.create_server(('127.0.0.1', 0))
socket.create_connection(server.getsockname(), 30).close()
"""


def tried_without_and_with(tmp_path, profile, lines, attempt):
    without = inside(tmp_path, profile, "Type=simple", attempt)
    assert without.startswith("reached"), without
    return inside(tmp_path, profile, lines, attempt)


@pytest.mark.parametrize(
    "line", ["ProtectSystem=strict", "ReadOnlyPaths={folder}", "ReadOnlyPaths=/var", "BindReadOnlyPaths={folder}"]
)
def test_writing_is_taken_away(tmp_path, place, line):
    profile = f'tier = 1\n[filesystem]\nwrite = ["{place}"]'
    lines = line.format(folder=place)
    assert tried_without_and_with(tmp_path, profile, lines, WRITE.format(folder=str(place))) == "refused EROFS\n"
    assert inside(tmp_path, profile, lines, READ.format(folder=str(place))).startswith("reached content")


def test_what_is_spared_is_still_written(tmp_path, place):
    profile = f'tier = 1\n[filesystem]\nwrite = ["{place}"]'
    lines = f"ProtectSystem=strict\nReadWritePaths={place}/part"
    assert tried_without_and_with(tmp_path, profile, lines, WRITE.format(folder=str(place))) == "refused EROFS\n"
    assert inside(tmp_path, profile, lines, WRITE.format(folder=f"{place}/part")).startswith("reached")


# In a tree that is read a hidden name is not there; in one that is written something empty covers it.
HIDDEN = {"read": "refused ENOENT\n", "write": "refused EACCES\n"}


@pytest.mark.parametrize("line", ["InaccessiblePaths={folder}/part", "TemporaryFileSystem={folder}/part:ro"])
@pytest.mark.parametrize("kind", ["read", "write"])
def test_what_is_inaccessible(tmp_path, place, kind, line):
    profile = f'tier = 1\n[filesystem]\n{kind} = ["{place}"]'
    attempt = PART.format(folder=str(place))
    assert tried_without_and_with(tmp_path, profile, line.format(folder=place), attempt) == HIDDEN[kind]


def test_a_tree_that_is_hidden_but_for_what_is_bound(tmp_path, place):
    profile = f'tier = 1\n[filesystem]\nread = ["{place}/file", "{place}/part"]'
    lines = f"TemporaryFileSystem={place}:ro\nBindReadOnlyPaths={place}/part"
    assert tried_without_and_with(tmp_path, profile, lines, READ.format(folder=str(place))) == "refused ENOENT\n"
    assert inside(tmp_path, profile, lines, PART.format(folder=str(place))).startswith("reached part")


def test_a_tree_is_hidden_by_each_of_its_names(tmp_path, place):
    """Compared as it is written, the grant by another name stayed."""
    (place / "link").symlink_to(place / "part")
    for granted, hidden in (("part", "link"), ("link", "part")):
        profile = f'tier = 1\n[filesystem]\nread = ["{place}/{granted}"]'
        lines = f"TemporaryFileSystem={place}/{hidden}:ro\nBindReadOnlyPaths=-{place}/{hidden}/nothing"
        attempt = READ.format(folder=f"{place}/{granted}")
        assert tried_without_and_with(tmp_path, profile, lines, attempt) == "refused ENOENT\n"


@pytest.mark.parametrize("line", ["ProtectHome=yes", "ProtectHome=tmpfs"])
def test_homes_are_hidden(tmp_path, home, line):
    profile = f'tier = 1\n[filesystem]\nread = ["{home}"]'
    assert tried_without_and_with(tmp_path, profile, line, READ.format(folder=str(home))) == "refused ENOENT\n"
    own = "open('/home/agent/x', 'w').close()"
    assert inside(tmp_path, profile, line, own).startswith("reached")


def test_homes_are_read_only(tmp_path, home):
    profile = f'tier = 1\n[filesystem]\nwrite = ["{home}"]'
    attempt = WRITE.format(folder=str(home))
    assert tried_without_and_with(tmp_path, profile, "ProtectHome=read-only", attempt) == "refused EROFS\n"


def test_tmp_is_its_own(tmp_path):
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "file").write_text("content")
    profile = f'tier = 1\n[filesystem]\nread = ["{tmp_path}/shown"]'
    attempt = READ.format(folder=f"{tmp_path}/shown")
    assert tried_without_and_with(tmp_path, profile, "PrivateTmp=yes", attempt) == "refused ENOENT\n"
    own = "open('/tmp/x', 'w').close()"
    assert inside(tmp_path, profile, "PrivateTmp=yes", own).startswith("reached")


@pytest.mark.parametrize("line", ["PrivateNetwork=yes", "IPAddressDeny=any"])
def test_the_way_out_is_taken_away(tmp_path, line):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        profile = f'tier = 1\n[network]\nconnect = ["host:{port}"]'
        assert tried_without_and_with(tmp_path, profile, line, CONNECT.format(port=port)).startswith("refused")


def test_even_its_own_loopback(tmp_path):
    assert tried_without_and_with(tmp_path, "tier = 1", "IPAddressDeny=any", LOOPBACK).startswith("refused")
    kept = "IPAddressDeny=any\nIPAddressAllow=localhost"
    assert inside(tmp_path, "tier = 1", kept, LOOPBACK).startswith("reached")


@pytest.mark.parametrize(
    "line", ["IPAddressDeny=0.0.0.0/0", "IPAddressDeny=126.0.0.0/7", "RestrictNetworkInterfaces=eth0 ~eth1"]
)
def test_its_own_loopback_is_an_interface_with_an_address(tmp_path, line):
    """Networks that hold 127.0.0.0/8 among others, and lists of interfaces without lo."""
    assert tried_without_and_with(tmp_path, "tier = 1", line, LOOPBACK).startswith("refused")
    assert inside(tmp_path, "tier = 1", "RestrictNetworkInterfaces=lo eth0", LOOPBACK).startswith("reached")


CALLS = {
    "RestrictAddressFamilies=AF_UNIX": "socket.socket(socket.AF_INET).close()",
    "RestrictAddressFamilies=~AF_INET6": "socket.socket(socket.AF_INET6).close()",
    "RestrictAddressFamilies=none": "socket.socket(socket.AF_UNIX).close()",
    "SystemCallFilter=~getpriority": "os.getpriority(os.PRIO_PROCESS, 0)",
    "SystemCallFilter=@system-service\nSystemCallFilter=~@resources": "os.sched_setaffinity(0, {0})",
    "RestrictRealtime=yes": "os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))",
}


@pytest.mark.parametrize("lines", CALLS)
def test_calls_are_taken_away(tmp_path, lines):
    assert tried_without_and_with(tmp_path, "tier = 1", lines, CALLS[lines]) == "refused EPERM\n"


FILE = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with open('/tmp/f', 'wb', 0) as file:
    while file.tell() < 4096:
        file.write(bytes(512))
"""
THREADS = """
event = threading.Event()
threads = [threading.Thread(target=event.wait) for _ in range(20)]
try:
    for thread in threads:
        thread.start()
finally:
    event.set()
"""
LIMITS = {
    "LimitNOFILE=64": "[os.dup(0) for _ in range(100)]",
    "LimitFSIZE=1K": FILE,
    "LimitAS=256M": "len(mmap.mmap(-1, 512 << 20))",
    "LimitNPROC=8": THREADS,
    "TasksMax=8": THREADS,
    "LimitSTACK=1M": "resource.getrlimit(resource.RLIMIT_STACK)[1] == 1 << 20 and sys.exit(print('refused limited'))",
}


@pytest.mark.parametrize("line", LIMITS)
def test_limits_hold(tmp_path, line):
    assert tried_without_and_with(tmp_path, "tier = 1", line, LIMITS[line]).startswith("refused")


def test_no_core_is_left(tmp_path):
    profile = 'tier = 1\n[process.limits]\ncore = "1M"'
    # A limit of one byte: no file is that small, and the host's handler of core dumps is not called either.
    attempt = "resource.getrlimit(resource.RLIMIT_CORE)[1] > 1 or sys.exit(print('refused none'))"
    assert tried_without_and_with(tmp_path, profile, "LimitCORE=0", attempt) == "refused none\n"


@pytest.mark.skipif("memory" not in features.probe().controllers, reason="no memory controller here")
def test_memory_is_limited(tmp_path):
    attempt = "len(bytearray(b'x') * (96 << 20))"
    answer = tried_without_and_with(tmp_path, "tier = 1", "MemoryMax=48M", attempt)
    assert answer == "ended 137"


def test_what_a_process_inherits(tmp_path):
    mask = os.umask(0o022)
    try:
        lines = f"UMask=0022\nNice={os.getpriority(os.PRIO_PROCESS, 0)}"
        attempt = "os.mkdir('/tmp/d'); return oct(os.stat('/tmp/d').st_mode), os.getpriority(os.PRIO_PROCESS, 0)"
        answer = inside(tmp_path, "tier = 1", lines, attempt)
    finally:
        os.umask(mask)
    assert answer == f"reached ('0o40755', {os.getpriority(os.PRIO_PROCESS, 0)})\n"


def test_a_directory_of_its_own(tmp_path, place, monkeypatch):
    monkeypatch.setattr("osmoda.supervisor.confining.file_directives._base", lambda name: str(place))
    profile = f'tier = 1\n[filesystem]\nwrite = ["{place}/part"]'
    attempt = "open(os.environ['STATE_DIRECTORY'] + '/new', 'w').close(); return os.environ['STATE_DIRECTORY']"
    assert inside(tmp_path, profile, "StateDirectory=part", attempt) == f"reached {place}/part\n"
    assert (place / "part" / "new").exists()


def test_the_standard_profile_of_a_unit_runs_and_keeps_its_secret(place):
    """As the units that name no profile: a virtual environment, a file of variables, a working directory."""
    work = place / "agent"
    venv.create(work / ".venv", symlinks=True, with_pip=False)
    (work / ".env").write_text("API_KEY=secret-of-the-test\n")
    (work / "main.py").write_text(
        "import json, os, sys\n"
        "def tried(act):\n"
        "    try:\n        act()\n"
        "    except OSError as error:\n        return type(error).__name__\n"
        "    return 'done'\n"
        "print(json.dumps([sys.prefix, tried(lambda: open('.env')), tried(lambda: open('new', 'w')),"
        " tried(lambda: open('/tmp/new', 'w')), tried(lambda: open('main.py'))]))\n"
    )
    text = f"WorkingDirectory={work}\nEnvironmentFile={work}/.env\nExecStart={work}/.venv/bin/python main.py"
    found = unit(text, place / "agent.service", write=True)
    confined = confine(found)
    result = Sandbox(confined.profile, agent="agent").run(
        [*found.exec_start[0].words], cwd=str(work), capture_output=True, timeout=60
    )
    assert result.stderr == b""
    assert result.stdout.decode().strip() == (f'["{work}/.venv", "FileNotFoundError", "OSError", "done", "done"]')
    assert (work / ".env").read_text() == "API_KEY=secret-of-the-test\n"
