"""What a study is: cells of settings, what is compared, and how large its runs are. Nothing is run here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ConfigDict

from fl.core.errors import ConfigError
from fl.settings.config import RunConfig, make_config
from fl.settings.fields import Value

Settings = Mapping[str, Value]
REPETITION = 1000  # added to a run's seed for each repetition: seeds of runs stay below


@dataclass(frozen=True)
class StudySize:
    """How large the runs of a study are. ``settings`` are put below those of a cell; a cell may be larger or smaller."""

    name: str
    settings: Settings
    seeds: tuple[int, ...]


FULL = StudySize("full", {"new-people": 0, "evaluate-every": 0}, seeds=(1, 2, 3))
SHORT = StudySize(
    "short",
    {
        **FULL.settings,
        "rounds": 8,
        "local-steps": 5,
        "finetune-steps": 5,
        "private-share": 0.25,
        "private-learning-rate": 7e-3,
    },
    seeds=(1,),
)
SMOKE = StudySize(
    "smoke",
    {
        **SHORT.settings,
        "devices": 3,
        "sentences": 14,
        "test-share": 0.15,
        "rounds": 2,
        "local-steps": 2,
        "finetune-steps": 2,
        "private-share": 0.5,
    },
    seeds=(1,),
)
SIZES = {size.name: size for size in (SMOKE, SHORT, FULL)}


@dataclass(frozen=True)
class StudyCell:
    """One row of a study's table: a name, and the settings in which it differs from the others.

    ``smoke`` says whether the small size has it: the small size is to show that a study runs, not what it finds. ``compared``
    are the arms that this row is about, those of the study by default; ``new_people`` that it is about people who took no part.
    ``again`` is a repetition: the same people, sentences and division, another initialisation and order of batches.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    name: str
    settings: Settings = field(default_factory=dict)
    smoke: bool = True
    compared: tuple[str, ...] = ()
    new_people: bool = False
    again: int = 0


@dataclass(frozen=True)
class Study:
    """A study. ``arms`` are trained and evaluated in each cell; of them ``compared`` is what the table is about.

    Every cell is compared with the cell ``baseline`` where both were tested on the same sentences, and with the arm ``global``,
    its own or else that of the baseline. ``drawn`` says that all settings of the cells but the baseline's were drawn at random.
    ``slices`` are further rows for parts of the test sentences: ``level`` of the switch, ``mixing`` by thirds of how much of a
    sentence is embedded language. ``base`` are settings of all cells, ``sizes`` replace those of a size.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    name: str
    question: str
    cells: tuple[StudyCell, ...]
    baseline: str
    arms: tuple[str, ...] = ("global", "personalized")
    compared: tuple[str, ...] = ("personalized",)
    drawn: bool = False
    slices: tuple[str, ...] = ()
    base: Settings = field(default_factory=dict)
    sizes: Mapping[str, Settings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [cell.name for cell in self.cells]
        assert len(set(names)) == len(names), f"study {self.name}: two cells of one name"
        assert self.baseline in names, f"study {self.name}: no cell {self.baseline}"

    @property
    def repeated(self) -> bool:
        """Whether its cells are repetitions of one run."""
        return any(cell.again for cell in self.cells)

    @property
    def missing(self) -> str:
        """The manifest that it needs and that is not there: such a study is run by name alone."""
        manifest = str(self.base.get("manifest", ""))
        return "" if Path(manifest).exists() else manifest

    def chosen(self, size: StudySize, names: tuple[str, ...] = ()) -> tuple[StudyCell, ...]:
        """The cells of a size, or those with ``names``; :class:`ConfigError` lists the known ones."""
        known = {cell.name: cell for cell in self.cells}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ConfigError(f"study {self.name!r} has no cell {unknown[0]!r}: known are {', '.join(known)}")
        if names:
            return tuple(cell for cell in self.cells if cell.name in names)
        return tuple(cell for cell in self.cells if cell.smoke or size.name != "smoke" or cell.name == self.baseline)

    def config(self, cell: StudyCell, size: StudySize, seed: int, output: str) -> RunConfig:
        """The settings of one run. Raises :class:`ConfigError` for what no run could be made of."""
        values: dict[str, object] = {"arms": ",".join(self.arms)}
        for settings in (size.settings, self.base, self.sizes.get(size.name, {}), cell.settings):  # the later wins
            values.update(settings)
        if cell.again:
            values["data.seed"] = values.get("data.seed") or seed
        return make_config({**values, "seed": seed + REPETITION * cell.again, "output": output})
