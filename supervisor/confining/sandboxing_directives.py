"""Every directive of systemd's sandboxing and resource control, and what becomes of it: satisfied, compiled or refused.

None is ignored: `apply` refuses a directive that has no rule here. The rules themselves are sorted by what they are
about; docs/confinement.md lists them for people.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from osmoda.supervisor.confining import file_directives, kernel_directives, network_directives, resource_directives
from osmoda.supervisor.confining.directive_rules import Rule, refused
from osmoda.supervisor.errors import UnitError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from osmoda.supervisor.confining.narrowing import Narrowing
    from osmoda.supervisor.units.unit import Directive

_CREDENTIALS = 'secrets reach an agent through EnvironmentFile=, or stay outside: secret = "NAME" in [network] allow'

_ELSEWHERE: dict[str, Rule] = {
    **dict.fromkeys(
        ("SetCredential", "SetCredentialEncrypted", "LoadCredential", "LoadCredentialEncrypted", "ImportCredential"),
        refused(_CREDENTIALS),
    ),
    "OpenFile": refused("no descriptor of the host's is handed into a sandbox; read in [filesystem] grants the file"),
    "SetLoginEnvironment": refused("HOME, USER and SHELL are those of the sandbox", "no", "false"),
}

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **file_directives.RULES,
        **kernel_directives.RULES,
        **network_directives.RULES,
        **resource_directives.RULES,
        **_ELSEWHERE,
    }
)
"""The rule of each directive, by its name."""


def apply(narrowing: Narrowing) -> None:
    """Put every directive of the narrowing's unit to its rule. Raises UnitError."""
    given: dict[str, list[Directive]] = {}
    for directive in narrowing.unit.confinement:
        given.setdefault(directive.name, []).append(directive)
    for name, directives in given.items():
        last = directives[-1]
        rule = RULES.get(name)
        if rule is None:
            raise UnitError(f"{name}= is not known to osmoda, which therefore cannot enforce it", last.origin)
        try:
            rule(narrowing, directives)
        except ValueError as error:
            raise UnitError(f"{name}={last.value} {error}", last.origin) from None
