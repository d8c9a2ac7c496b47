"""The command ``idiolect``, also as ``python -m idiolect``: it makes sure that Python finds Idiolect's own packages, then runs.

Other Flower projects have packages called ``fl``, ``clients``, ``strategies`` or ``sim`` too. Where Python finds one of those
first, part of Idiolect is hidden behind it. This module's name is Idiolect's alone, and it imports the standard library only.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

PACKAGES = ("fl", "clients", "strategies", "sim")
_HOME = Path(__file__).resolve().parent


def shadow(path: Sequence[str]) -> str:
    """Which package of another project hides one of Idiolect's on the search ``path``, and the remedy; empty if none does.

    A folder without ``__init__.py`` hides nothing: Python prefers a package that has one, wherever it stands on the path.
    Packages that do not lie beside this file are left out: Flower's archive of the app has no ``sim``.
    """
    for name in PACKAGES:
        if not (_HOME / name).is_dir() or (spec := PathFinder.find_spec(name, path)) is None:
            continue
        (place, *_) = spec.submodule_search_locations or [spec.origin or ""]
        if Path(place).resolve() != _HOME / name:
            return (
                f"{place} hides Idiolect's own package {name!r} ({_HOME / name}): start from another folder and take "
                f"{Path(place).parent} out of PYTHONPATH"
            )
    return ""


def main() -> None:
    """Run the command of ``sys.argv``; where another project hides part of it, say so and exit with 1."""
    if found := shadow(sys.path):
        sys.exit(f"idiolect: {found}")
    from sim.cli.entry import main as command

    command()


if __name__ == "__main__":
    main()
