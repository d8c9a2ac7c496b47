"""Write what is made from the settings: the table of ``docs/settings.md`` and Flower's section of ``pyproject.toml``.

    python -m sim.cli.generate

in the project's folder, after a row in a table or a setting has changed.
"""

import re
import tomllib
from pathlib import Path

import tomli_w

from fl.settings.config import SETTINGS, make_config
from fl.settings.fields import flattened

PAGE, PROJECT = Path("docs/settings.md"), Path("pyproject.toml")
_TABLE = re.compile(r"^\| setting \|.*?\n(?=[^|]|\Z)", re.MULTILINE | re.DOTALL)
_SECTION = re.compile(r"^\[tool\.flwr\.app\.config\].*?\n(?=\n\[(?!tool\.flwr\.app\.config))", re.MULTILINE | re.DOTALL)


def new_page(text: str) -> str:
    """The page with the table of today's settings."""
    lines = ["| setting | default | allowed | meaning |", "| --- | --- | --- | --- |"]
    for row in SETTINGS.values():
        default = f"`{row.default}`" if row.default != "" else "empty"
        lines.append(f"| `{row.key}` | {default} | {row.allowed} | {row.help} |".replace("|pattern", "\\|pattern"))
    table = "\n".join(lines) + "\n"
    return _TABLE.sub(lambda _: table, text, count=1)


def new_project(text: str) -> str:
    """The project file with all of today's settings, each with the value that it has there or else its default."""
    given = flattened(tomllib.loads(text)["tool"]["flwr"]["app"]["config"])
    config = make_config({key: value for key, value in given.items() if key in SETTINGS})
    section = tomli_w.dumps({"tool": {"flwr": {"app": {"config": config.model_dump(by_alias=True)}}}})
    return _SECTION.sub(lambda _: section, text, count=1)


if __name__ == "__main__":
    for path, renew in ((PAGE, new_page), (PROJECT, new_project)):
        path.write_text(renew(path.read_text(encoding="utf-8")), encoding="utf-8")
