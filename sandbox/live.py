"""What runs and what is refused, kept up to date beside a view of it (`osmoda-sandbox top`)."""

from __future__ import annotations

import os
import queue
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from osmoda.egress.control_client import Client
from osmoda.host import cgroup, paths
from osmoda.sandbox import processes
from osmoda.sandbox.live_denials import Listener, Refusals, Told

if TYPE_CHECKING:
    from collections.abc import Callable

    from osmoda.egress.control_client import Served
    from osmoda.sandbox.processes import Running

_MOST_WAITING = 4096  # messages that the view has not taken yet
_AGAIN = 1.0  # seconds until gateways are looked for again, where that failed


@dataclass(frozen=True, slots=True)
class Shown:
    """One running sandbox.

    `cpu` is percent of one core since the look before, at the first since its start. `agent` is empty and
    `connections`, the open ones, None where no gateway of this user's has the sandbox. `refused` are what its control
    group has counted: processes killed for want of memory, forks.
    """

    running: Running
    cpu: float
    agent: str
    connections: int | None
    refused: tuple[int, int]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        found = asdict(self.running)
        for name in ("cpu_time", "started", "age"):
            found[name] = round(found[name], 3)
        return found | {"cpu_percent": round(self.cpu, 1), "agent": self.agent, "connections": self.connections}


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at all sandboxes. `time` is in seconds since the epoch; `note` says what could not be seen."""

    time: float
    sandboxes: tuple[Shown, ...]
    note: str


class Sampler:
    """Looks at this user's sandboxes, as root at everybody's."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, int], float] = {}
        self._looked = 0.0

    def look(self) -> Sample:
        """What runs now. Takes up to five seconds where a gateway does not answer."""
        note = ""
        served: dict[str, Served] = {}
        try:
            client = Client()
            served = {one.identity: one for one in client.sessions()}
            if client.silent:
                note = f"gateway {', '.join(map(str, client.silent))} does not answer"
        except (OSError, paths.UntrustedDirectory) as error:
            note = f"gateways cannot be asked: {error}"
        mine = os.geteuid()
        now, before = time.monotonic(), self._before
        found = [one for one in processes.running() if mine in (0, one.uid)]
        self._before = {(one.identity, one.pid): one.cpu_time for one in found}
        shown = []
        for one in found:
            earlier = before.get((one.identity, one.pid))
            spent = one.cpu_time if earlier is None else one.cpu_time - earlier
            seconds = one.age if earlier is None else now - self._looked
            session = served.get(one.identity) if processes.is_genuine(one) else None
            shown.append(
                Shown(
                    one,
                    # A process that another one reaps in this very moment is counted nowhere.
                    max(100 * spent / seconds, 0.0) if seconds > 0 else 0.0,
                    session.agent if session else "",
                    session.connections if session else None,
                    _refused(one),
                )
            )
        self._looked = now
        return Sample(time.time(), tuple(shown), note)


def _refused(one: Running) -> tuple[int, int]:
    group = cgroup.of_process(one.pid, f"osmoda-{one.identity}")
    try:
        return group.oom_kills(), group.pids_refused()
    except OSError:
        return 0, 0  # it has ended meanwhile


class Live:
    """Samples every `interval` seconds, and refusals as they come; `wake` is called, in a thread, when there is news.

    Use it with `with`: the socket that monitors tell, and with it all cost for them, is there only as long.
    """

    def __init__(self, interval: float, wake: Callable[[], None]) -> None:
        """Raises SandboxError, UntrustedDirectory."""
        self.sample: Sample | None = None
        self.refusals = Refusals()
        self._interval = interval
        self._wake = wake
        self._listener = Listener()
        self._over = threading.Event()
        self._news: queue.Queue[Sample | Told | dict[str, Any]] = queue.Queue(_MOST_WAITING)
        self._lost = 0
        self._failure: BaseException | None = None
        work = (self._listen, self._watch, self._sample)
        self._threads = [threading.Thread(target=self._guard, args=(one,), daemon=True) for one in work]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        # The threads are daemons: one may be waiting for a gateway, and nobody for it.
        self._over.set()
        self._listener.close()

    def take(self) -> bool:
        """Take the news; whether there was a new sample. Raises what has ended a thread."""
        sampled = False
        while True:
            try:
                news = self._news.get_nowait()
            except queue.Empty:
                break
            if isinstance(news, Sample):
                self.sample, sampled = news, True
                for one in news.sandboxes:
                    self.refusals.take_limits(one.running.identity, *one.refused, news.time)
            elif isinstance(news, Told):
                self.refusals.take(news, time.time())
            else:
                self.refusals.take_record(news)
        if self._failure is not None:
            raise self._failure
        return sampled

    @property
    def missed(self) -> int:
        """Refusals that came too fast to be taken in."""
        return self._lost + self.refusals.missed

    # --- the threads ---

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._failure = error
            self._wake()

    def _say(self, news: Sample | Told | dict[str, Any]) -> None:
        try:
            self._news.put_nowait(news)
        except queue.Full:
            self._lost += 1
        self._wake()

    def _listen(self) -> None:
        while (told := self._listener.hear()) is not None:
            self._say(told)

    def _watch(self) -> None:
        while not self._over.is_set():
            try:
                for record in Client().watch():
                    if record.get("verdict") == "deny" or record.get("event") == "missed":
                        self._say(record)
            except (OSError, paths.UntrustedDirectory):
                # The sampler, which asks the same gateways, says what is wrong.
                self._over.wait(_AGAIN)

    def _sample(self) -> None:
        sampler = Sampler()
        due = time.monotonic()
        while True:
            self._say(sampler.look())
            due = max(due + self._interval, time.monotonic())
            if self._over.wait(due - time.monotonic()):
                return
