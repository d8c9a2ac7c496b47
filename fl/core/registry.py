"""Things of one kind by name: those of the project, and those that other people's packages register as Python entry points."""

import difflib
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from fl.core.errors import ConfigError

Thing = TypeVar("Thing")


class Registry(Mapping[str, Thing], Generic[Thing]):
    """``kind`` is what one is called in messages (``gate``); packages register theirs under ``idiolect.<kind>s``.

    Entry points are loaded at the first look, so that building a registry costs nothing. Raises :class:`ConfigError` for a
    registered thing that cannot be loaded, or that has the name of another.
    """

    def __init__(self, kind: str, things: Mapping[str, Thing]) -> None:
        self.kind, self.group = kind, f"idiolect.{kind}s"
        self._own = dict(things)

    @cached_property
    def _all(self) -> dict[str, Thing]:
        found = dict(self._own)
        for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
            package = point.dist.name if point.dist is not None else point.value
            if point.name in found:
                raise ConfigError(
                    f"package {package!r} registers a {self.kind} {point.name!r}, and there is one: uninstall it"
                )
            try:
                found[point.name] = point.load()
            except (ImportError, AttributeError) as error:
                raise ConfigError(
                    f"the {self.kind} {point.name!r} of package {package!r} cannot be loaded ({error}): repair or uninstall it"
                ) from error
        return found

    def __getitem__(self, name: str) -> Thing:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def find(self, name: str) -> Thing:
        """The thing of this name; :class:`ConfigError` with the nearest and all known names if there is none."""
        if name not in self._all:
            near = difflib.get_close_matches(name, self._all, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"unknown {self.kind} {name!r}: {hint}known are {', '.join(self._all)}")
        return self._all[name]
