"""The part of docs/units.md that follows from the table of directives: `python -m tests.unit_table` writes it anew."""

from __future__ import annotations

from pathlib import Path

from osmoda.supervisor.units import directives

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "units.md"
BEGIN, END = "<!-- from the table of directives -->\n", "<!-- to here -->\n"
TITLES: dict[directives.How, str] = {
    "supported": "Supported",
    "default only": "Only as it holds anyway",
    "confinement": "Compiled into the plan of the sandbox, or refused there",
    "without effect": "Without effect",
    "refused": "Refused",
}


def written() -> str:
    """All directives as Markdown: by what becomes of them, by section, by reason."""
    lines = []
    for how, title in TITLES.items():
        rows: dict[tuple[str, str], list[str]] = {}
        for section, rules in {**directives.SERVICE, **directives.SOCKET}.items():
            for name, rule in rules.items():
                if rule.how == how:
                    rows.setdefault((section, rule.reason), []).append(name)
        reasons = any(reason for _, reason in rows)
        lines += [f"### {title}", "", "| section | directives |" + " why |" * reasons, "|---|---|" + "---|" * reasons]
        for (section, reason), names in rows.items():
            listed = ", ".join(f"`{name}`" for name in names)
            lines.append(f"| [{section}] | {listed} |" + f" {reason} |" * reasons)
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(before + BEGIN + "\n" + written() + "\n" + END + after)


if __name__ == "__main__":
    main()
