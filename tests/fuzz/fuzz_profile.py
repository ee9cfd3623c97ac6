"""The profile's parser: any text is a profile within its tier's ceiling, or a ProfileError with its place."""

from __future__ import annotations

import glob
import os
import tomllib

from osmoda.egress.policy import Policy
from osmoda.sandbox import grants, network_policy, profile_file, seccomp, tiers
from osmoda.sandbox.errors import ProfileError
from osmoda.sandbox.profile import Profile
from tests.fuzz.lane import Choices, run

INSTRUMENTED = ("osmoda.egress", "osmoda.sandbox", "tomllib")

NAME, FOLDER = "/no/such/folder/agent.toml", "/no/such/folder"
TABLES = ("filesystem", "network", "process", "process.limits", "environment", "environment.set", "tools", "mesh")
KEYS = (
    *("schema", "tier", "description", "extends", "degrade", "read", "write", "deny", "workspace", "tmp", "allow"),
    *("serve", "connect", "ask", "loopback", "families", "syscalls", "memory", "cpu", "pids", "limits", "open_files"),
    *("file_size", "address_space", "stack", "core", "pass", "set", "send", "receive", "host", "ports", "methods"),
    *("paths", "secret", "max_body", "max_bytes", "max_requests", "ech", "addresses", "X", '"a b"', '""', "ceiling"),
)
VALUES = (
    *("0", "1", "2", "true", "false", "0.5", "nan", "-inf", "1e400", "0x10", "99999999999999999999", "1979-05-27"),
    *('""', '"*"', '"none"', '"overlay"', '"direct"', '"512M"', '"99999999T"', '"memory"', '"landlock-net"', '"GET"'),
    *('"/usr"', '"/"', '"/proc/1"', '"a/../.."', '"~/x"', '"~root"', '"//a"', '"a\\u0000b"', '"/var/lib/x"', '"~/"'),
    *('"a.example"', '"*.example:80,443"', '"[2001:db8::/32]:22"', '"10.0.0.0/8"', '"127.1"', '"1.2.3.4:0"'),
    *('"agent:a:80"', '"host:22"', '"mesh:s/a:1"', '"localhost:9=agent:a:80"', '"unix"', '"netlink"', '"*.*"'),
    *('"@system-service"', '"~@debug"', '"@nothing"', '"ptrace"', '"~read"', '"openat"', '"~"', '"LANG"'),
    *('"LD_X"', '"/v1/*"', '"b\\u00fccher.example"', '"\\u202e"', '"x y"'),
    *("[]", "{}", "{ host = 'a.b' }", "'''\n'''", '"unfinished', "[", "]", "{", "}", ",", "\n", "# a comment\n"),
)  # fmt: skip
SHIPPED = tuple(sorted(glob.glob(os.path.join(tiers.SHIPPED, "agents", "*.toml"))))


def any_bytes(choices: Choices) -> None:
    check(choices.rest())


def any_lines(choices: Choices) -> None:
    """Keys and values that a profile has, wherever they come to stand."""
    lines = ["schema = 1", f"tier = {choices.number(2)}"]
    for _ in range(choices.number(20)):
        key = choices.pick(KEYS)
        match choices.number(7):
            case 0:
                lines.append(f"[{choices.pick(TABLES)}]")
            case 1:
                lines.append(f"[[{choices.pick(TABLES)}.{key}]]")
            case 2:
                lines.append(f"{choices.pick(TABLES)}.{key} = {choices.pick(VALUES)}")
            case 3:
                inside = ", ".join(
                    f"{choices.pick(KEYS)} = {choices.pick(VALUES)}" for _ in range(choices.number(3) + 1)
                )
                lines.append(f"{key} = [{{ {inside} }}]")
            case 4:
                lines.append(choices.piece(20).decode("utf-8", "replace"))
            case 5:
                nested = choices.number(600)
                opening, closing = choices.pick((("[", "]"), ("{a=", "}"), ("[{a=", "}]")))
                lines.append(f"{key} = {opening * nested}1{closing * nested}")
            case 6:
                lines.append(f"{key} = [{', '.join(choices.pick(VALUES) for _ in range(choices.number(4)))}]")
            case _:
                lines.append(f"{key} = {choices.pick(VALUES)}")
    check("\n".join(lines).encode())


def damaged(choices: Choices) -> None:
    """A sample of those that are shipped, with some of it overwritten."""
    with open(choices.pick(SHIPPED), "rb") as file:
        text = bytearray(file.read())
    for _ in range(choices.number(5) + 1):
        at = choices.number(min(len(text), 0xFFFF))
        text[at : at + choices.number(8)] = choices.pick((choices.piece(8), choices.pick(VALUES).encode()))
    check(bytes(text))


def check(content: bytes) -> None:
    """Read `content` as a profile's file, and look at what comes of it."""
    try:
        text = profile_file._text(content, NAME)
        profile = profile_file.load_text(text, NAME, FOLDER)
    except ProfileError as error:
        for one in (error, *error.others):
            # Another file only where `extends` named one that is there.
            assert one.file != NAME or 0 <= one.line <= content.count(b"\n") + content.count(b"\r") + 2
            assert one.message
        return
    meaning(profile, text)


def meaning(profile: Profile, text: str) -> None:
    values = tomllib.loads(text)
    assert "extends" in values or profile.tier == values.get("tier", 2)
    assert profile_file.load_text(text, NAME, FOLDER) == profile
    assert len(profile.digest) == 64
    for place in profile.origins.values():
        file, _, line = place.rpartition(":")
        assert file != NAME or 1 <= int(line) <= text.count("\n") + 1
    assert grants.excess(profile, tiers.ceiling(profile.tier)) == ()
    assert grants.excess(profile, profile) == ()
    if profile.tier == 0:
        return
    calls = seccomp.allowed(profile.process.syscalls, tier=profile.tier)
    assert seccomp.FLOOR <= calls <= seccomp.ceiling(profile.tier)
    files = profile.filesystem
    for path in (*files.read, *files.write, *files.deny):
        assert path == os.path.normpath(path)
        assert path.startswith("/")
        assert not path.startswith("//")
    for path in (*files.read, *files.write):
        assert path.split("/")[1] not in ("", "proc", "sys", "dev", "run", "boot")
    policy = network_policy.policy_of(profile)
    if policy:
        loaded = Policy.load(policy)
        for rule in profile.network.allow:
            if not rule.is_network and "*" not in rule.host and not profile.network.deny:
                assert all(loaded.decide(rule.host, port or 1).allowed for port in rule.ports)


MODES = (any_bytes, any_lines, damaged)


def one(data: bytes) -> None:
    choices = Choices(data)
    choices.pick(MODES)(choices)


if __name__ == "__main__":
    run(one)
