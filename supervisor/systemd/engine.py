"""The engine of a host that systemd has booted: units are confined by drop-ins, and systemd starts and stops them.

No daemon of osmoda's is needed for that; each call here is one conversation with the manager.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from osmoda.sandbox import processes
from osmoda.sandbox.errors import SandboxError
from osmoda.supervisor.capacity.admission import Admission, DoesNotFit
from osmoda.supervisor.confining.confinement import confine
from osmoda.supervisor.errors import SupervisorError
from osmoda.supervisor.systemd import drop_ins as systemd_drop_ins
from osmoda.supervisor.systemd import files as systemd_files
from osmoda.supervisor.systemd import snapshots as systemd_snapshots
from osmoda.supervisor.systemd.bus import Manager, NoSuchUnit
from osmoda.supervisor.units import directives
from osmoda.supervisor.units import files as unit_files
from osmoda.supervisor.units import syntax as unit_syntax
from osmoda.supervisor.units.files import systemd_path
from osmoda.supervisor.units.jobs import closure
from osmoda.supervisor.units.loading import Loader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from osmoda.sandbox.profile import Profile
    from osmoda.supervisor.units.unit import Unit

type Outcome = dict[str, Any]
"""`unit`, `ok`, and a `text` that says why not."""


def is_declared(unit: Unit) -> bool:
    """Whether a unit has a section [X-Osmoda]."""
    return any(key.startswith("X-Osmoda.") for key in unit.origins)


def outcome(unit: str, ok: bool, text: str = "") -> Outcome:
    """What has become of what was asked for a unit."""
    return {"unit": unit, "ok": ok, "text": text}


class SystemdEngine:
    """Units under systemd, as `manager` has them."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    # --- confining ---

    async def confine(self, names: Iterable[str]) -> dict[str, str]:
        """Have systemd run these services, and what they pull in that is an agent, in their sandboxes from now on.

        Why not, by unit; empty where all are confined. A unit that is pulled in is an agent when it has a section
        [X-Osmoda], or was confined before.
        """
        asked = [*dict.fromkeys(names)]
        units, problems = await asyncio.to_thread(lambda: closure(Loader(systemd_path()), asked))
        before = {*systemd_files.confined()}
        wanted = {name: unit for name, unit in units.items() if name in asked or name in before or is_declared(unit)}
        # By another name than its own.
        wanted |= {unit.name: unit for name, unit in units.items() if name in asked}
        program = systemd_files.program()
        changed = False
        for name, unit in wanted.items():
            try:
                await asyncio.to_thread(confine, unit)
                changed |= systemd_files.write(unit, program)
            except (SupervisorError, SandboxError) as error:
                problems[name] = str(error)
            except OSError as error:
                problems[name] = f"its drop-in cannot be written: {error.filename}: {error.strerror}"
        if changed or await self._is_stale(wanted):
            await self._manager.call("Reload")
        for name, unit in wanted.items():
            if name not in problems:
                problem = await self.problem_of(unit, program)
                if problem:
                    problems[name] = problem
        return problems

    async def _is_stale(self, names: Iterable[str]) -> bool:
        """Whether the files of one of them have changed since the manager has read them."""
        for name in names:
            if (await self._manager.properties(name)).get("NeedDaemonReload"):
                return True
        return False

    async def problem_of(self, unit: Unit, program: str) -> str:
        """Why a unit would not run in its sandbox, as the manager has loaded it: empty when it would."""
        shown = await self._manager.properties(unit.name)
        mark = systemd_drop_ins.fingerprint(unit)
        own = systemd_drop_ins.path(systemd_files.folder(), unit.name)
        paths = [str(path) for path in shown.get("DropInPaths", ())]
        later = paths[paths.index(own) + 1 :] if own in paths else []
        for kind, directive in systemd_drop_ins.KINDS.items():
            loaded = [list(one[1]) for one in shown.get(directive, ())]
            expected = [
                [program, "exec", kind, str(number), mark, unit.name]
                for number in range(len(systemd_drop_ins.commands(unit, kind)))
            ]
            if loaded != expected:
                if own not in paths:
                    return f"systemd does not read {own}"
                after = ", ".join(later) or "the unit as it was read before"
                return f"{directive}= does not lead into its sandbox for systemd, because of {after}"
        return await asyncio.to_thread(_taken_outside, own, later)

    # --- what can be asked ---

    async def start(self, names: Sequence[str], *, forced: bool = False) -> list[Outcome]:
        """Confine units, and start them with what they need. One more than has room is refused, unless `forced`."""
        names = [*map(full_name, names)]
        refused = {} if forced else await self._without_room(names)
        started = await self._confined([name for name in names if name not in refused], "StartUnit")
        return [outcome(name, False, text) for name, text in refused.items()] + started

    async def _without_room(self, names: Sequence[str]) -> dict[str, str]:
        """Those of the services `names` for which this host has no room beside what runs, and why."""
        admission = Admission()
        for name in systemd_files.confined():
            if await self._is_up(name):
                profile = await asyncio.to_thread(_profile_of, name)
                if profile is not None:
                    admission.admit(name, profile, forced=True)
        refused = {}
        for name in names:
            profile = None if await self._is_up(name) else await asyncio.to_thread(_profile_of, name)
            if profile is not None:
                try:
                    admission.admit(name, profile)
                except DoesNotFit as error:
                    refused[name] = str(error)
        return refused

    async def _is_up(self, name: str) -> bool:
        state = (await self._manager.properties(name)).get("ActiveState")
        return state not in (None, "inactive", "failed")

    async def restart(self, names: Sequence[str]) -> list[Outcome]:
        """Stop and start units as their files are now. One that could not be confined so is not stopped."""
        return await self._confined(names, "RestartUnit")

    async def _confined(self, names: Sequence[str], member: str) -> list[Outcome]:
        names = [*map(full_name, names)]
        services = []
        refused: dict[str, str] = {}
        for name in names:
            try:
                services.append(name if name.endswith(".service") else self._service_of(name))
            except SupervisorError as error:
                refused[name] = str(error)
        problems = await self.confine(services)
        if problems:
            # All or none: what could not be confined may be pulled in by the others.
            why = "; ".join(f"{name}: {text}" for name, text in problems.items())
            return [outcome(name, False, problems.get(name, why)) for name in names]
        allowed = [name for name in names if name not in refused]
        done = await self._each(allowed, lambda name: self._job(member, name))
        return [outcome(name, False, text) for name, text in refused.items()] + done

    def _service_of(self, socket: str) -> str:
        return Loader(systemd_path()).load_socket(socket).service

    async def stop(self, names: Sequence[str]) -> list[Outcome]:
        """Stop units and what cannot be without them."""
        return await self._each(names, lambda name: self._job("StopUnit", name))

    async def reload(self, names: Sequence[str]) -> list[Outcome]:
        """Have units read their own configuration again (ExecReload=)."""
        return await self._each(names, lambda name: self._job("ReloadUnit", name))

    async def reset_failed(self, names: Sequence[str]) -> list[Outcome]:
        """Forget that units failed, and how often they were started; without names of all that are confined."""

        async def one(name: str) -> Outcome:
            try:
                await self._manager.call("ResetFailedUnit", "s", name)
            except SupervisorError as error:
                return outcome(name, False, str(error))
            return outcome(name, True)

        return await self._each(names or systemd_files.confined(), one)

    async def read_again(self) -> list[Outcome]:
        """Write the drop-ins of all confined units anew, and have systemd read all files again."""
        names = systemd_files.confined()
        problems = await self.confine(names)
        await self._manager.call("Reload")
        return [outcome(name, name not in problems, problems.get(name, "")) for name in names]

    async def enable(self, names: Sequence[str]) -> list[str]:
        """Confine units, and link them as their [Install] says: the links. Raises SupervisorError."""
        names = [*map(full_name, names)]
        problems = await self.confine([name if name.endswith(".service") else self._service_of(name) for name in names])
        if problems:
            raise SupervisorError("; ".join(f"{name}: {text}" for name, text in problems.items()))
        _, changes = await self._manager.call("EnableUnitFiles", "asbb", names, False, False)
        await self._manager.call("Reload")
        return [f"{path} → {target}" if target else str(path) for _, path, target in changes]

    async def disable(self, names: Sequence[str]) -> list[str]:
        """Remove those links: which. The units stay confined."""
        (changes,) = await self._manager.call("DisableUnitFiles", "asb", [*map(full_name, names)], False)
        await self._manager.call("Reload")
        return [f"removed {path}" for _, path, _ in changes]

    async def release(self, names: Sequence[str]) -> list[Outcome]:
        """Remove the drop-ins of units that do not run: from then on systemd starts them outside a sandbox."""

        async def one(name: str) -> Outcome:
            shown = await self._manager.properties(name)
            if shown["ActiveState"] not in ("inactive", "failed"):
                return outcome(name, False, "it runs; stop it first")
            return outcome(name, True, "" if systemd_files.remove(name) else "it has no drop-in")

        done = await self._each(names, one)
        await self._manager.call("Reload")
        return done

    async def write(self, names: Sequence[str]) -> list[Outcome]:
        """Confine units, and leave them as they are otherwise."""
        names = [*map(full_name, names)]
        problems = await self.confine(names)
        return [outcome(name, name not in problems, problems.get(name, "")) for name in {*names, *problems}]

    async def check(self) -> list[Outcome]:
        """Each unit that is an agent, and whether systemd would run it in its sandbox."""
        loader = Loader(systemd_path())
        before = {*systemd_files.confined()}
        program = systemd_files.program()
        # Instances have no file of their own: those that systemd has loaded.
        instances = {*await self._manager.units(["*@*.service"])}
        found = []
        for name in sorted(before | instances | {one for one in loader.names() if "@." not in one}):
            try:
                unit = await asyncio.to_thread(loader.load, name)
            except SupervisorError as error:
                if name in before:
                    found.append(outcome(name, False, str(error)))
                continue  # a service of the host's own, which osmoda need not understand
            if name in before:
                problem = await self.problem_of(unit, program)
                found.append(outcome(name, not problem, problem))
            elif is_declared(unit):
                text = f"it has no drop-in, so systemd runs it outside a sandbox; `osmoda-watch systemd write {name}`"
                found.append(outcome(name, False, text))
        return found

    async def snapshots(self, names: Sequence[str], *, brief: bool) -> list[dict[str, Any]]:
        """How units are; without names all that are confined."""
        found = []
        for name in [*map(full_name, names)] or systemd_files.confined():
            shown = await self._manager.properties(name)
            if shown.get("LoadState") == "loaded":
                # Looked for after its pid was known: else one that was started meanwhile would have none.
                running = await asyncio.to_thread(processes.running)
                found.append(await asyncio.to_thread(systemd_snapshots.of, name, shown, running, brief=brief))
        return found

    # --- jobs ---

    async def _each(self, names: Iterable[str], do: Callable[[str], Awaitable[Outcome]]) -> list[Outcome]:
        return list(await asyncio.gather(*(do(full_name(name)) for name in names)))

    async def _job(self, member: str, name: str) -> Outcome:
        try:
            result = await self._manager.job(member, name)
        except NoSuchUnit:
            return outcome(name, member == "StopUnit", "it does not run")
        except SupervisorError as error:
            return outcome(name, False, str(error))
        if result in ("done", "skipped"):
            return outcome(name, True)
        shown = await self._manager.properties(name)
        return outcome(name, False, systemd_snapshots.why(result, shown))


def _taken_outside(own: str, later: Sequence[str]) -> str:
    """Why drop-ins after ours would change what runs outside: a file of variables there would be the wrapper's, too."""
    for path in later:
        try:
            assignments = [*unit_syntax.assignments(unit_files.read(path), path, directives.SERVICE)]
        except SupervisorError as error:
            return str(error)
        for one in assignments:
            if one.section == "Service":
                return (
                    f"{one.origin}: {one.name}= comes after {own}, so that systemd would take it for what runs outside "
                    f"of the sandbox; give the file a name that comes before {unit_files.GENERATED}"
                )
    return ""


def _profile_of(name: str) -> Profile | None:
    """What a service runs under; None for one that is no service, or that its start will refuse."""
    try:
        return confine(Loader(systemd_path()).load(name)).profile if name.endswith(".service") else None
    except (SupervisorError, SandboxError):
        return None


def full_name(name: str) -> str:
    """A unit as a person names it, with its suffix."""
    return name if name.endswith((".service", ".socket", ".target")) else f"{name}.service"


def converse(do: Callable[[SystemdEngine], Awaitable[Any]]) -> Any:
    """Have something done in one conversation with the manager: what it gives. Raises SupervisorError."""

    async def conversation() -> Any:
        async with Manager() as manager:
            return await do(SystemdEngine(manager))

    return asyncio.run(conversation())
