"""From a unit to its profile: what each directive becomes, and what is refused with its line."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from osmoda.host import features
from osmoda.sandbox.grants import excess
from osmoda.sandbox.profile import Profile
from osmoda.supervisor.confining import sandboxing_directives
from osmoda.supervisor.confining.confinement import confine
from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.units import directives
from tests.compiled import host
from tests.written_units import unit

SYSTEMD = "/usr/lib/systemd/systemd"


@pytest.fixture
def agents(tmp_path):
    """A folder of agents that is not below /tmp for whoever looks: nothing in these tests minds its real place."""
    folder = tmp_path / "agents"
    folder.mkdir()
    return folder


@pytest.fixture
def written(tmp_path):
    """Writes a profile and gives a unit that names it, with more lines for its two sections."""

    def write(profile, service="", section=""):
        file = tmp_path / "agent.toml"
        file.write_text(f"schema = 1\n{profile}\n")
        lines = "\n".join(line.strip() for line in service.strip().splitlines())
        return unit(
            f"[Service]\n{lines}\n[X-Osmoda]\nProfile={file}\n{section}\n", tmp_path / "agent.service", write=True
        )

    return write


def refused(found):
    with pytest.raises(UnitError) as caught:
        confine(found)
    return str(caught.value)


def line_of(found, name):
    return next(directive.origin for directive in found.confinement if directive.name == name)


# The list


def test_every_directive_of_confinement_has_a_rule():
    read = {name for name, rule in directives.SERVICE["Service"].items() if rule.how == "confinement"}
    assert set(sandboxing_directives.RULES) == read


@pytest.mark.skipif(not os.path.exists(SYSTEMD), reason="asks systemd for its list, and there is none")
def test_every_directive_of_this_systemd_is_decided():
    items = subprocess.run([SYSTEMD, "--dump-configuration-items"], capture_output=True, text=True, check=True).stdout
    section = re.search(r"^\[Service\]\n(.*?)\n\n", items, re.DOTALL | re.MULTILINE)
    names = [line.partition("=")[0] for line in section[1].splitlines()]
    assert len(names) > 200
    assert [name for name in names if name not in directives.SERVICE["Service"]] == []


def test_a_directive_without_a_rule_is_refused(written, monkeypatch):
    found = written("tier = 1", "PrivateTmp=yes")
    monkeypatch.setattr(sandboxing_directives, "RULES", {})
    assert (
        refused(found)
        == f"{line_of(found, 'PrivateTmp')}: PrivateTmp= is not known to osmoda, which therefore cannot enforce it"
    )


# Without a profile


def test_a_unit_without_a_profile_reads_its_directory_and_its_interpreter(agents):
    base = agents / "python3.99"
    (base / "bin").mkdir(parents=True)
    (base / "bin" / "python3.99").write_text("")
    work = agents / "research"
    venv = work / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(base / "bin" / "python3.99")
    (venv / "pyvenv.cfg").write_text(f"home = {base / 'bin'}\nversion = 3.99.1\n")
    (work / ".env").write_text("KEY=secret\n")
    found = confine(
        unit(
            f"WorkingDirectory={work}\nEnvironmentFile={work}/.env\nExecStart={venv}/bin/python main.py",
            agents / "a.service",
            write=True,
        )
    )
    profile = found.profile
    assert (profile.tier, found.workspace) == (1, "")
    assert profile.filesystem.read == (str(base), str(work))
    assert profile.filesystem.write == ()
    assert profile.filesystem.deny == (f"{work}/.env",)
    assert profile.network == Profile.default(1).network
    assert profile.origin("filesystem", "read", 1) == f"{agents}/a.service:2"
    assert profile.origin("filesystem", "read", 0) == f"{agents}/a.service:4"
    assert profile.origin("filesystem", "deny", 0) == f"{agents}/a.service:3"
    assert found.notes[0].startswith(f"a.service names no profile: tier 1, reading {base}, {work}, writing nothing")
    assert f"[X-Osmoda] and Profile=a to {agents}/a.service" in found.notes[1]
    assert f'[filesystem] write = ["{work}"]' in found.notes[2]


def test_a_virtual_environment_elsewhere_and_a_script_with_env(agents):
    venv = agents / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python3").symlink_to("/usr/bin/python3")
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\n")
    script = agents / "agent"
    script.write_text(f"#!{venv}/bin/python3\n")
    plain = agents / "plain"
    plain.write_text("#!/usr/bin/env python3\n")
    found = confine(unit(f"ExecStartPre={plain}\nExecStart={script}", agents / "a.service", write=True))
    assert found.profile.filesystem.read == (str(script), str(plain), str(venv))


@pytest.mark.parametrize("kind", ["script", "link", "folder", "environment"])
def test_what_somebody_else_may_write_leads_to_nothing_that_is_not_shown(agents, kind):
    """It would be granted with the daemon's rights: root's files, to whoever owns the code of an agent."""
    secret, work = agents / "secret", agents / "work"
    for folder in (secret / "bin", work / "bin"):
        folder.mkdir(parents=True)
    (secret / "bin" / "python3").write_text("")
    program = work / "bin" / "run"
    by, leads = program, program
    match kind:
        case "script":
            program.write_text(f"#!{secret}/bin/python3\n")
        case "link":
            program.symlink_to(secret / "bin" / "python3")
            by = work
        case "folder":
            program = work / "linked" / "python3"
            program.parent.symlink_to(secret / "bin")
            by, leads = work, program.parent
        case "environment":
            program.symlink_to("/usr/bin/python3")
            by = leads = work / "pyvenv.cfg"
            by.write_text(f"home = {secret}/bin\n")
    found = unit(f"ExecStart={program}", agents / "a.service", write=True)
    assert str(secret) in confine(found).profile.filesystem.read, "where nobody else may write, it counts"
    by.chmod(0o777)
    says = refused(found)
    assert says.startswith(f"{agents}/a.service:2: {secret}/bin/python3 is not shown to the agent: ")
    assert (
        f" {leads} leads there, and {by} can be written by everybody; name what the program needs in a profile" in says
    )
    assert confine(unit(f"WorkingDirectory={agents}\nExecStart={program}", agents / "a.service", write=True))


def test_an_interpreter_without_a_path_is_looked_for_nowhere(agents):
    program = agents / "run"
    program.write_text("#!python3\n")
    found = confine(unit(f"ExecStart={program}", agents / "a.service", write=True))
    assert found.profile.filesystem.read == (str(program),)


def test_an_installation_is_shown_whole_and_a_home_never(agents, monkeypatch):
    monkeypatch.setenv("HOME", str(agents))
    node = agents / "node-v22"
    for folder in (node / "bin", agents / "bin"):
        folder.mkdir(parents=True)
    (node / "bin" / "node").write_text("")
    (agents / "bin" / "tool").symlink_to(node / "bin" / "node")
    found = confine(unit(f"ExecStart={node}/bin/node", agents / "a.service", write=True))
    assert found.profile.filesystem.read == (str(node),)


@pytest.mark.parametrize(
    ("directory", "why"), [("/root", "much more"), ("/etc/ssl", "many programs"), ("/run", "lies in /run")]
)
def test_a_working_directory_that_is_too_much_is_refused(directory, why):
    said = refused(unit(f"WorkingDirectory={directory}"))
    assert said.startswith("/etc/osmoda/units/agent.service:3: WorkingDirectory=")
    assert why in said
    assert "Profile=" in said


def test_a_working_directory_that_is_not_there():
    assert "WorkingDirectory=/nowhere is not there" in refused(unit("WorkingDirectory=/nowhere"))
    assert confine(unit("WorkingDirectory=-/nowhere")).profile.filesystem.read == ()


# Profile, tier, ports


def test_the_profile_is_the_units_profile(written):
    found = confine(written('tier = 1\n[filesystem]\nread = ["/opt"]'))
    assert found.profile.filesystem.read == ("/opt",)
    assert found.profile.file.endswith("agent.toml")
    assert found.notes == ()


def test_a_missing_profile_and_one_that_is_not_valid(tmp_path, written):
    found = unit("[Service]\n[X-Osmoda]\nProfile=nowhere-to-be-found", tmp_path / "a.service", write=True)
    assert refused(found).startswith(
        f"{tmp_path}/a.service:4: nowhere-to-be-found: no profile has this name; looked in "
    )
    assert re.search(r"agent.service:5: .*agent.toml:2:1: colour is not a key", refused(written('colour = "red"')))


@pytest.mark.parametrize(("profile", "tier"), [("tier = 1", 0), ("", 1), ("tier = 2", 0)])
def test_a_unit_cannot_raise_the_tier(written, profile, tier):
    found = written(profile, section=f"Tier={tier}")
    said = refused(found)
    assert f"Tier={tier} is above tier" in said
    assert said.startswith(f"{found.files[0]}:")


def test_a_lower_tier_holds_its_ceiling(written):
    found = confine(written('tier = 1\n[process]\npids = 20\n[network]\nallow = ["a.example.com"]', section="Tier=2"))
    assert (found.profile.tier, found.profile.process.pids) == (2, 20)
    assert found.profile.network.families == ("inet", "inet6")
    assert "above the ceiling of tier 2" in refused(
        written('tier = 1\n[filesystem]\nwrite = ["/var/tmp"]', section="Tier=2")
    )


def test_tier_0_is_written_out(written, tmp_path):
    assert confine(written("tier = 0")).profile.tier == 0
    assert confine(unit("[Service]\n[X-Osmoda]\nTier=0", tmp_path / "a.service", write=True)).profile.tier == 0
    assert confine(unit("User=root" if os.geteuid() == 0 else "Nice=0")).profile.tier == 1


def test_ports_are_served(written):
    written_unit = written("tier = 1\n[network]\nserve = [8081]", section="Serve=8082 8083")
    found = confine(written_unit)
    assert found.profile.network.serve == (8081, 8082, 8083)
    assert found.profile.origin("network", "serve", 1) == f"{written_unit.files[0]}:6"
    # Its file alone says less than what is in force: an edit of it must not be taken for the whole.
    assert found.profile.file == ""


@pytest.mark.parametrize("of", ["profile", "unit"])
@pytest.mark.parametrize("mode", [0o646, 0o662])
def test_what_somebody_else_could_write_grants_nothing(written, of, mode):
    found = written("tier = 1")
    assert confine(found).profile.tier == 1
    changed = found.files[0] if of == "unit" else found.osmoda.profile
    os.chmod(changed, mode)
    if mode == 0o662:
        os.chmod(changed, 0o602)
    assert f"{changed} can be written by everybody" in refused(found)


def test_nor_does_what_lies_where_somebody_else_could_put_another(written, tmp_path):
    found = written("tier = 1")
    tmp_path.chmod(0o777)
    assert f"{tmp_path} can be written by everybody" in refused(found)
    tmp_path.chmod(0o1777)  # as /tmp: nobody replaces what belongs to another
    assert confine(found).profile.tier == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
def test_what_belongs_to_somebody_else_grants_nothing(written):
    found = written("tier = 0")
    os.chown(found.files[0], 12345, 12345)
    assert "belongs to the user 12345" in refused(found)


def test_identities(written):
    own = os.geteuid()
    assert confine(written("tier = 1", f"User={own}\nGroup={os.getegid()}")).profile.tier == 1
    said = refused(written("tier = 1", "User=daemon"))
    assert "agent.service:3: User=daemon cannot be enforced" in said.replace("agent.service:2", "agent.service:3")
    if own == 0:
        assert confine(written("tier = 1", "User=daemon\nDynamicUser=yes")).profile.tier == 1
        assert "User=daemon cannot be" in refused(written("tier = 1", "User=daemon\nDynamicUser=yes\nDynamicUser=no"))


def test_a_workspace_needs_a_directory(written, tmp_path):
    profile = 'tier = 1\n[filesystem]\nworkspace = "direct"'
    assert "WorkingDirectory=" in refused(written(profile))
    assert confine(written(profile, f"WorkingDirectory={tmp_path}")).workspace == str(tmp_path)
    assert confine(written(profile, f"WorkingDirectory={tmp_path}", "Workspace=/srv")).workspace == "/srv"


# Compiled directives


HARDENED = """
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
PrivateNetwork=yes
PrivateUsers=yes
PrivateIPC=yes
PrivateMounts=yes
NoNewPrivileges=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictNamespaces=~user mnt
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
RestrictAddressFamilies=AF_UNIX AF_INET
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
AmbientCapabilities=
KeyringMode=private
MemoryMax=512M
MemorySwapMax=infinity
TasksMax=64
CPUQuota=50%
LimitNOFILE=256:1024
LimitCORE=0
IPAddressDeny=any
DevicePolicy=closed
DeviceAllow=/dev/null rw
InaccessiblePaths=-/etc/shadow /sys
MountFlags=private
"""


def test_a_hardened_unit_is_compiled(written):
    found = written('tier = 1\n[network]\nallow = ["a.example.com"]\n[filesystem]\nwrite = ["/var/log"]', HARDENED)
    base = Profile.load(found.osmoda.profile)
    profile = confine(found).profile
    assert excess(profile, base) == ()
    assert profile.filesystem.write == ()
    assert profile.filesystem.read == ("/var/log",)
    assert {"/home", "/root", "/etc/shadow", "/sys", "/tmp", "/var/tmp", "/usr/lib/modules"} <= set(
        profile.filesystem.deny
    )
    assert (profile.network.allow, profile.network.families) == ((), ("inet", "unix"))
    process = profile.process
    assert (process.memory, process.cpu, process.pids, process.limits.open_files) == (512 << 20, 0.5, 64, 256)
    assert {"~chown", "~setuid", "~sched_setscheduler", "~setpriority"} <= set(process.syscalls)
    assert profile.origin("process", "memory") == str(line_of(found, "MemoryMax"))
    # What is in force is less than the file grants: no edit of that reaches it.
    assert profile.file == ""


def test_the_order_of_directives_does_not_matter(written):
    lines = [line for line in HARDENED.split("\n") if not line.startswith("SystemCallFilter")]
    profile = 'tier = 1\n[filesystem]\nread = ["/srv"]\nwrite = ["/var/log"]'
    one = confine(written(profile, "\n".join(lines))).profile
    other = confine(written(profile, "\n".join(reversed(lines)))).profile
    assert one.digest == other.digest


# Each satisfied directive with a value that asks for something: without a sandbox nothing would hold it.
NEEDS_A_SANDBOX = [
    line
    for line in HARDENED.split("\n")
    if line and not line.startswith(("MemoryMax", "MemorySwap", "Tasks", "CPU", "Limit", "AmbientCapabilities="))
]


@pytest.mark.parametrize("line", NEEDS_A_SANDBOX)
def test_in_tier_0_nothing_is_taken_for_enforced(written, line):
    found = written("tier = 0", line)
    said = refused(found)
    assert said.startswith(f"{found.files[0]}:")
    assert f"{line.partition('=')[0]}=" in said


def test_limits_hold_in_tier_0(written):
    process = confine(written("tier = 0", "MemoryMax=1G\nCPUQuota=200%\nLimitNOFILE=128\nTasksMax=99")).profile.process
    assert (process.memory, process.cpu, process.pids, process.limits.open_files) == (1 << 30, 2.0, 99, 128)


def test_a_limit_only_lowers_and_says_when_it_does_not(written):
    profile = 'tier = 1\n[process]\nmemory = "256M"\n'
    found = confine(written(profile, "MemoryMax=512M\nLimitNOFILE=65536"))
    assert (found.profile.process.memory, found.profile.process.limits.open_files) == (256 << 20, 1024)
    memory, files = (note.partition(": ")[2] for note in found.notes)
    origin = found.profile.origin("process", "memory")
    assert memory.startswith(
        f"MemoryMax=512M does not raise the {256 << 20} of the profile ({origin}); [process] memory"
    )
    assert files.startswith(
        "LimitNOFILE=65536 does not raise the 1024 of the profile (tier 1); [process.limits] open_f"
    )


def test_read_only_paths_and_what_is_spared(written, tmp_path):
    data, logs = tmp_path / "data", tmp_path / "data" / "logs"
    logs.mkdir(parents=True)
    profile = f'tier = 1\n[filesystem]\nwrite = ["{data}"]'
    files = confine(written(profile, f"ReadOnlyPaths={data}")).profile.filesystem
    assert (files.read, files.write) == ((str(data),), ())
    files = confine(written(profile, f"ReadOnlyPaths={data}\nReadWritePaths={logs}")).profile.filesystem
    assert (files.read, files.write) == ((str(data),), (str(logs),))
    assert "is written as a whole" in refused(written(profile, f"ReadOnlyPaths={logs}"))


def test_a_workspace_that_is_made_read_only(written, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    found = confine(
        written('tier = 1\n[filesystem]\nworkspace = "direct"', f"WorkingDirectory={work}\nProtectSystem=strict")
    )
    assert (found.workspace, found.profile.filesystem.workspace) == ("", "none")
    assert found.profile.filesystem.read == (str(work),)
    kept = confine(
        written(
            'tier = 1\n[filesystem]\nworkspace = "direct"',
            f"WorkingDirectory={work}\nProtectSystem=strict\nReadWritePaths={work}",
        )
    )
    assert (kept.workspace, kept.profile.filesystem.workspace) == (str(work), "direct")


def test_own_directories_have_to_be_there_and_granted(written, monkeypatch, tmp_path):
    monkeypatch.setattr("osmoda.supervisor.confining.file_directives._base", lambda name: str(tmp_path / name))
    grants = f'tier = 1\n[filesystem]\nwrite = ["{tmp_path}/StateDirectory"]'
    state = tmp_path / "StateDirectory" / "agent"
    (tmp_path / "StateDirectory").mkdir()
    assert f"there is no {state}; make it" in refused(written(grants, "StateDirectory=agent"))
    state.mkdir(mode=0o700)
    profile = confine(written(grants, "StateDirectory=agent\nStateDirectoryMode=0700")).profile
    assert dict(profile.environment.set)["STATE_DIRECTORY"] == str(state)
    assert "has the mode 0700" in refused(written(grants, "StateDirectory=agent\nStateDirectoryMode=0750"))
    assert f"{state} may not be written" in refused(written("tier = 1", "StateDirectory=agent"))


def test_of_one_path_the_stricter_line_holds(written, tmp_path):
    """As systemd has it; what is spared lies in what is read-only, and not around it."""
    tree = tmp_path / "tree"
    tree.mkdir()
    grants = f'tier = 1\n[filesystem]\nwrite = ["{tree}"]'
    for read_only in ("ReadOnlyPaths", "BindReadOnlyPaths"):
        assert f"ReadWritePaths={tree} cannot be" in refused(
            written(grants, f"{read_only}={tree}\nReadWritePaths={tree}")
        )


@pytest.mark.parametrize("line", ["MemoryMax=64M", "CPUQuota=50%"])
def test_a_limit_that_the_profile_gives_up_is_none(written, monkeypatch, line):
    """`degrade` is the profile's word for its own limits, and not for those of a unit."""
    monkeypatch.setattr(features, "probe", lambda: host(controllers=(), machine=os.uname().machine))
    profile = 'tier = 1\ndegrade = ["memory", "cpu"]'
    assert confine(written(profile)).profile.tier == 1
    assert "this host has no controller for it" in refused(written(profile, line))


@pytest.mark.parametrize(
    ("lines", "allow", "deny", "loopback"),
    [
        ("IPAddressDeny=any", (), (), False),
        ("IPAddressDeny=any\nIPAddressAllow=localhost", (), (), True),
        ("IPAddressDeny=10.0.0.0/8", ("a.example.com:443",), ("10.0.0.0/8:*",), True),
        ("IPAddressAllow=10.0.0.0/8", ("a.example.com:443",), (), True),
        ("IPAddressDeny=any\nIPAddressDeny=", ("a.example.com:443",), (), True),
    ],
)
def test_addresses(written, lines, allow, deny, loopback):
    network = confine(written('tier = 1\n[network]\nallow = ["a.example.com"]', lines)).profile.network
    assert tuple(map(str, network.allow)) == allow
    assert tuple(map(str, network.deny)) == deny
    assert network.loopback is loopback


@pytest.mark.parametrize(
    ("value", "families"),
    [
        ("AF_INET AF_INET6", ("inet", "inet6")),
        ("~AF_UNIX", ("inet", "inet6")),
        ("none", ()),
        ("AF_PACKET", ()),
        ("AF_INET\nRestrictAddressFamilies=~AF_INET", ()),
        ("", ("inet", "inet6", "unix")),
    ],
)
def test_families(written, value, families):
    assert confine(written("tier = 1", f"RestrictAddressFamilies={value}")).profile.network.families == families


def test_system_calls_are_read_as_systemd_reads_them(written):
    def taken(*lines):
        profile = confine(written("tier = 1", "\n".join(f"SystemCallFilter={line}" for line in lines))).profile
        return {entry[1:] for entry in profile.process.syscalls if entry.startswith("~")}

    base = taken("")
    assert taken("~ptrace @clock", "~@chown") - base == {"chown", "fchown", "fchownat", "lchown"}
    assert "getpriority" in taken("@system-service", "~getpriority")
    assert "getpriority" not in taken("@system-service", "~getpriority", "getpriority")
    assert taken("~getpriority", "") == base
    least = "@basic-io @default @file-system @process @signal @io-event ioctl madvise mremap setpgid setsid"
    assert "socket" in taken(f"{least} recvfrom sendto recvmsg sendmsg")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("SystemCallFilter=~execve", "takes away execve, without which no sandbox starts a program"),
        ("SystemCallFilter=@no-such", "there is no group of system calls '@no-such'"),
        ("SystemCallFilter=~chown:EACCES", "answered with EPERM, and not with EACCES"),
        ("SystemCallErrorNumber=EACCES", "answered with EPERM"),
        ("SystemCallLog=@clock", "not where they are allowed"),
        ("MemoryDenyWriteExecute=yes", "protection of memory"),
        ("AmbientCapabilities=CAP_NET_BIND_SERVICE", "nothing in a sandbox has a capability"),
        ("ProcSubset=pid", "/proc shows more"),
        ("ProcSubset=all-of-it", "is none of all, pid"),
        ("MountFlags=shared", "never reach the host"),
        ("KeyringMode=shared", "key ring"),
        ("RuntimeDirectory=agent", "/run, where services of the host listen"),
        ("ReadWritePaths=/var/lib", "/var/lib may not be written: refused by mounts"),
        ("ReadWritePaths=relative", "is no absolute path"),
        ("InaccessiblePaths=/proc/version", "may be read"),
        ("InaccessiblePaths=/nowhere", "does not exist; a - in front"),
        ("NoExecPaths=/usr", "may be listed"),
        ("BindPaths=/usr:/opt/usr", "under its own name"),
        ("BindReadOnlyPaths=/var/lib", "may not be"),
        ("TemporaryFileSystem=/var", "no /var of its own to write"),
        ("IPAddressDeny=10.0.0.0/8\nIPAddressAllow=10.1.0.0/16", "takes something out of 10.0.0.0/8"),
        ("IPAddressDeny=10.0.0.999", "does not appear to be an IPv4 or IPv6 network"),
        ("MemoryHigh=1G", "MemoryMax="),
        ("MemoryMax=0", "nothing runs in no memory"),
        ("MemoryMax=much", 'is no size such as "512M"'),
        ("TasksMax=0", "nothing runs in no process"),
        ("CPUQuota=0%", "is no percentage above 0"),
        ("CPUWeight=200", "CPUQuota= bounds"),
        ("LimitMEMLOCK=1M", "a profile has no such limit"),
        ("Delegate=yes", "no control group is given"),
        ("UMask=0123", "an agent has the umask of the daemon"),
        ("Nice=7", "an agent has the nice value of the daemon"),
        ("DeviceAllow=/dev/kvm rw", "no sandbox is given /dev/kvm"),
        ("LoadCredential=key:/etc/key", "EnvironmentFile="),
        ("RootDirectory=/srv/root", "the host's own files"),
        ("PAMName=login", "PAM"),
        ("PrivateTmp=perhaps", "is neither yes nor no"),
    ],
)
def test_what_is_not_enforced_is_refused_with_its_line(written, line, why):
    found = written("tier = 1", line)
    said = refused(found)
    assert why in said
    assert said.startswith(f"{found.files[0]}:")
    assert "None" not in said


@pytest.mark.parametrize(
    "line",
    [
        "PrivateTmp=no",
        "ProtectSystem=no",
        "ProtectHome=false",
        "RestrictNamespaces=no",
        "MemoryMax=infinity",
        "Delegate=no",
        "CPUWeight=100",
        "Slice=system.slice",
        "TasksMax=infinity",
        "MemoryAccounting=yes",
        "KeyringMode=",
        "LimitNICE=infinity",
        "ProtectProc=default",
        "ProcSubset=all",
        "SystemCallFilter=",
        "InaccessiblePaths=",
        "RootDirectory=/",
        "CPUQuota=",
    ],
)
def test_what_asks_for_nothing_changes_nothing(written, line):
    found = written("tier = 1", line)
    assert confine(found).profile.digest == Profile.load(found.osmoda.profile).digest


def test_secrets_are_hidden_where_they_lie_in_what_is_shown(written, tmp_path):
    env = tmp_path / "data" / ".env"
    env.parent.mkdir()
    env.write_text("KEY=value\n")
    shown = confine(written(f'tier = 1\n[filesystem]\nwrite = ["{env.parent}"]', f"EnvironmentFile={env}"))
    assert shown.profile.filesystem.deny == (str(env),)
    beside = confine(written("tier = 1", f"EnvironmentFile={env}"))
    assert beside.profile.filesystem.deny == ()
    missing = confine(
        written(f'tier = 1\n[filesystem]\nwrite = ["{env.parent}"]', f"EnvironmentFile=-{env.parent}/other.env")
    )
    assert missing.profile.filesystem.deny == ()
