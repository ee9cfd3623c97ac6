"""From a request to a plan: out of the cache, else compiled (and only then are the cold modules loaded)."""

from __future__ import annotations

from osmoda.sandbox import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.request import Request


def for_request(request: Request, directory: str) -> tuple[Plan, bool]:
    """The plan that `request`, made in the folder `directory`, means on this host, and whether it came from the cache.

    Raises ProfileError or CompileError.
    """
    key = _key(request, directory)
    plan = cache.load(key)
    if plan is not None:
        return plan, True
    return compile_again(request, directory), False


def compile_again(request: Request, directory: str) -> Plan:
    """The same without looking into the cache; the result is kept there."""
    from osmoda.sandbox import compilation

    plan, witnesses = compilation.of_request(request, directory)
    cache.store(_key(request, directory), plan, witnesses)
    return plan


def _key(request: Request, directory: str) -> tuple[object, ...]:
    # The folder matters only to paths that are relative to it; no profile has no path.
    named = (request.profile, *request.read, *request.write)
    relative = [path for path in named if path and not path.startswith("/")]
    return cache.key(*request.compiled_from, directory if relative else "")
