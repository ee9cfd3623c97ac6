from __future__ import annotations

import pathlib
import tomllib

import pytest

from osmoda.sandbox import seccomp, tiers
from osmoda.sandbox.grants import excess
from osmoda.sandbox.profile import Profile
from osmoda.sandbox.syscall_groups import expand


@pytest.mark.parametrize("tier", [0, 1, 2])
def test_the_defaults_are_within_the_ceiling(tier):
    assert excess(Profile.default(tier), tiers.ceiling(tier)) == ()


def test_each_ceiling_is_within_the_one_below():
    assert excess(tiers.ceiling(2), tiers.ceiling(1)) == ()
    assert excess(tiers.ceiling(1), tiers.ceiling(0)) == ()


def test_a_missing_profile_means_no_network_no_files_and_an_empty_workspace():
    profile = Profile.default()
    assert profile.tier == 2
    assert profile.filesystem.read == profile.filesystem.write == ()
    assert profile.filesystem.workspace == "none"
    assert profile.network.allow == profile.network.serve == profile.network.connect == ()
    assert not profile.network.ask
    assert not profile.network.loopback
    assert profile.tools.allow == ()
    assert profile.origin("filesystem", "workspace") == "tier 2"


@pytest.mark.parametrize("tier", [1, 2])
def test_the_defaults_that_the_documentation_promises(tier):
    profile = Profile.default(tier)
    assert profile.filesystem.tmp == 256 << 20
    assert profile.network.loopback is (tier == 1)
    assert set(profile.network.families) == ({"unix", "inet", "inet6"} if tier == 1 else {"inet", "inet6"})
    assert profile.process.pids == (512 if tier == 1 else 256)
    assert profile.process.limits.open_files == 1024
    assert profile.process.limits.core == 0
    assert profile.process.memory is profile.process.cpu is None


@pytest.mark.parametrize("tier", [1, 2])
def test_the_ceiling_promises_no_call_that_the_filter_refuses(tier):
    spec = tiers.ceiling(tier).process.syscalls
    obsolete = {"epoll_ctl_old", "epoll_wait_old"}
    assert expand(spec) - seccomp.allowed(spec, tier=tier) <= obsolete


@pytest.mark.parametrize("tier", [1, 2])
def test_no_profile_has_what_attacks_on_the_kernel_need(tier):
    calls = seccomp.allowed(tiers.ceiling(tier).process.syscalls, tier=tier)
    dangerous = (
        "io_uring_setup keyctl add_key userfaultfd perf_event_open bpf mount setns unshare open_by_handle_at "
        "init_module kexec_load pidfd_getfd"
    )
    assert calls.isdisjoint(dangerous.split())


def test_tier_2_has_no_service_of_the_host():
    ceiling = tiers.ceiling(2)
    assert ceiling.filesystem.write == ()
    assert not any(peer.startswith("host:") for peer in ceiling.network.connect)
    assert set(ceiling.network.families) == {"inet", "inet6"}
    assert not any(rule.is_network or rule.host == "*" for rule in ceiling.network.allow)
    assert not any(rule.addresses or rule.ech for rule in ceiling.network.allow)


@pytest.mark.parametrize("tier", [0, 1, 2])
def test_a_tier_file_says_its_own_tier(tier):
    path = pathlib.Path(tiers.SHIPPED) / f"tier{tier}.toml"
    assert tomllib.loads(path.read_text())["tier"] == tier
    assert [file for file, _ in Profile.default(tier).files] == [str(path)]


@pytest.mark.parametrize("tier", [-1, 3, True + 2])
def test_there_are_three_tiers(tier):
    with pytest.raises(ValueError, match="tiers 0, 1 and 2"):
        tiers.ceiling(tier)
