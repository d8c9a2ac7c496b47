"""Whose speech a run trains on: a manifest that is named, or that of a synthetic population, divided by the seed."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fl.core.paths import cache_root, find
from fl.core.printing import first_of
from fl.core.rng import derive_random, derive_seed
from fl.data.checked import CheckText, listen, usable_utterances
from fl.data.manifest import read_lines
from fl.data.partition import Population, split_population
from fl.data.synthetic import new_people_of, population_digest, synthesize
from fl.metrics.languages import language_tags
from fl.settings.config import RunConfig
from fl.settings.names import OWN_MANIFEST
from fl.settings.tables import DataTable


def population_of(config: RunConfig, check_text: CheckText) -> Population:
    """The population of a run; an aggregator of deployed devices has no speech, only the base and its shapes."""
    if config.data.manifest == OWN_MANIFEST:
        return Population(devices=(), new_people=(), dropped=0)
    return load_population(population_manifest(config), config.data_seed, config.data, check_text)


def load_population(manifest: Path, seed: int, data: DataTable, check_text: CheckText) -> Population:
    """Read a manifest, leave out what cannot be used, and divide the rest, as if the manifest held nothing else.

    Every process gets the same division from the same seed. A held-out speaker is tested on the setting ``new_people_tests``
    sentences at most, drawn by the seed.
    """
    utterances, left_out, notes = usable_utterances(manifest, check_text, strict=data.strict)
    # Speakers whom a synthetic population holds out stay so; otherwise they are drawn by the seed.
    marked = new_people_of(manifest)
    chosen = marked[: data.new_people] if len(marked) >= data.new_people else data.new_people
    population = split_population(
        utterances,
        seed=derive_seed(seed, "partition"),
        validation_share=data.validation_share,
        test_share=data.test_share,
        new_people=chosen,
    )
    drawn = []
    for person in population.new_people:
        order = derive_random(seed, "new-people-tests", person.device_id).sample(person.test, len(person.test))
        drawn.append(replace(person, train=(), validation=(), test=tuple(order[: data.new_people_tests])))
    notes = (*notes, *_cost_of_dividing(population))
    return replace(population, new_people=tuple(drawn), manifest=manifest.absolute(), left_out=left_out, notes=notes)


def _cost_of_dividing(population: Population) -> Iterator[str]:
    """A line for what no device trains on or is tested on although it could be used."""
    if population.dropped:
        reason = "their text is in a later set or of a held-out speaker, and a test would be known"
        yield f"{population.dropped:,} sentences are neither trained on nor scored: {reason}; --new-people 0 holds nobody out"
    for part, purpose in (("train", "to train on"), ("test", "to be tested on")):
        lacking = [device.device_id for device in population.devices if not getattr(device, part)]
        if lacking:
            shown = ", ".join(first_of(lacking))
            yield f"{len(lacking):,} of {len(population.devices):,} devices have nothing {purpose}: {shown}"


def prepare(config: RunConfig, progress: Callable[[int, int], None]) -> None:
    """Make the synthetic population of a run, or listen to the recordings that a manifest names."""
    if config.data.manifest != OWN_MANIFEST:
        manifest = population_manifest(config, progress)
        listen(manifest, list(read_lines(manifest).values()), progress, again=True)


def population_manifest(config: RunConfig, progress: Callable[[int, int], None] | None = None) -> Path:
    """The manifest of a run: the one that is named, or that of a synthetic population, made at first use."""
    if config.data.manifest:
        return find(Path(config.data.manifest).expanduser().resolve())
    data = config.data
    wanted: dict[str, Any] = {
        "pair": data.synthetic.pair,
        "devices": data.devices,
        "new_people": data.new_people,
        "sentences": data.synthetic.sentences,
        "seed": config.data_seed,
        "voices": data.synthetic.voices,
        "matched": data.synthetic.matched,
        "traits": data.synthetic.traits,
        "new_people_sentences": data.synthetic.new_people_sentences,
    }
    name = f"{data.synthetic.pair}-{data.devices}x{data.synthetic.sentences}-seed{config.data_seed}-{population_digest(**wanted)}"
    return synthesize(cache_root() / "populations" / name, **wanted, progress=progress)


def languages_of(population: Population, *, by_script: bool = False) -> Counter[str]:
    """How often each language is named in the population, or ``by_script`` has a word; the most frequent is the matrix language."""
    count: Counter[str] = Counter()
    for person in (*population.devices, *population.new_people):
        for utterance in (*person.train, *person.test):
            if by_script:
                count.update(tag for tag in language_tags(utterance.text) if tag is not None)
            count.update(language for _, language in utterance.spans)
            if not utterance.spans and utterance.lang:
                count[utterance.lang] += 1
    return count
