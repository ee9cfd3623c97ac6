"""From a request to a plan: out of the cache, else compiled (and only then are the cold modules loaded)."""

from __future__ import annotations

import time

from osmoda.host import paths
from osmoda.sandbox import answering, cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from hashlib import sha256

    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.profile import Profile
    from osmoda.sandbox.request import Request
else:
    from _sha2 import sha256

_STEP = 5_000_000  # ns: less is the time between two looks at two clocks


def moment() -> tuple[int, int]:
    """Now, in ns: by the clock that files are stamped with, and by one that nobody sets."""
    return time.time_ns(), time.monotonic_ns()


def edits_count_from(then: tuple[int, int], now: tuple[int, int]) -> int:
    """The time of change, in ns since the epoch, from which on a file was edited after the moment `then`.

    It is 1 where the first clock was set back between `then` and `now`: what is stamped earlier may be later.
    """
    set_back = (then[0] - then[1]) - (now[0] - now[1])
    return 1 if set_back > _STEP else then[0]


def for_request(request: Request, directory: str) -> tuple[Plan, bool]:
    """The plan that `request`, made in the folder `directory`, means on this host, and whether it came from the cache.

    Raises ProfileError or CompileError, and LaunchError where a file system does not answer that has to be asked.
    """
    answering.require(_asked_for(request))
    plan = cache.load(key(request, directory))
    if plan is not None:
        return plan, True
    return compile_again(request, directory), False


def _asked_for(request: Request) -> Iterator[str]:
    """What is looked for first: osmoda's own directories, the profile where it is named by a path, the workspace."""
    yield from map(paths.directory, ("config", "cache", "state", "runtime"))
    yield request.workspace or "."
    if "/" in request.profile or request.profile.endswith(".toml"):
        yield request.profile


def compile_again(request: Request, directory: str) -> Plan:
    """The same without looking into the cache; the result is kept there."""
    from osmoda.sandbox import compilation

    plan, witnesses = compilation.of_request(request, directory)
    cache.store(key(request, directory), plan, witnesses)
    return plan


def for_profile(profile: Profile) -> Plan:
    """The plan of a profile that was read just now, out of the cache or compiled and kept there.

    Raises CompileError, and LaunchError where a file system does not answer.
    """
    # All of it, whence each line came, too: a plan's sentences name that.
    origins = sorted((repr(path), origin) for path, origin in profile.origins.items())
    digest = sha256(repr((profile, origins)).encode("utf-8", "surrogatepass")).hexdigest()
    name = cache.key("profile", digest)
    plan = cache.load(name)
    if plan is None:
        from osmoda.sandbox import compilation

        plan, witnesses = compilation.of_profile(profile)
        cache.store(name, plan, witnesses)
    return plan


def key(request: Request, directory: str) -> tuple[object, ...]:
    """What of `request`, made in `directory`, and of this process's surroundings decides the plan."""
    # The folder matters only to paths that are relative to it; no profile has no path.
    named = (request.profile, *request.read, *request.write)
    relative = [path for path in named if path and not path.startswith("/")]
    return cache.key(*request.compiled_from, directory if relative else "")
