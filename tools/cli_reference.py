"""Write the flag tables of docs/cli.md from kvern.config.schema. ``--check`` only says whether they are current.

python tools/cli_reference.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from kvern.config.flags import environment_name, flag_name
from kvern.config.schema import EngineSettings, ModelSettings, SamplingSettings, ServerSettings, settings_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
BEGIN, END = "<!-- cli_reference.py writes from here -->", "<!-- to here -->"
GROUPS: tuple[tuple[str, type[Any], bool], ...] = (
    ("Model", ModelSettings, True),
    ("Engine", EngineSettings, True),
    ("Server", ServerSettings, True),
    ("Sampling", SamplingSettings, False),
)


def tables() -> str:
    """One table per group: flags, meaning, default, and the environment variable where there is one."""
    parts = []
    for title, group, environment in GROUPS:
        head = "| flag | meaning | unit | default |" + (" environment |" if environment else "")
        lines = [f"### {title}", "", head, "|---|---|---|---|" + ("---|" if environment else "")]
        for name, (setting, default) in settings_of(group).items():
            flags = ", ".join(f"`{flag}`" for flag in (flag_name(name), *setting.aliases))
            if isinstance(default, bool):
                flags += f", `--no-{name.replace('_', '-')}`"
            doc = setting.doc + (f" ({', '.join(setting.choices)})" if setting.choices else "")
            cells = [flags, doc, setting.unit, "" if default is None else f"`{default}`"]
            cells += [f"`{environment_name(name)}`"] if environment else []
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def updated(page: str) -> str:
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}"


def main(arguments: list[str]) -> int:
    page = PAGE.read_text(encoding="utf-8")
    wanted = updated(page)
    if "--check" in arguments:
        if page != wanted:
            print("docs/cli.md is out of date: run python tools/cli_reference.py")
        return int(page != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
