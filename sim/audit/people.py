"""Who the people of an audit are: attributes that an attacker could want to know, and utterances that were trained on or not."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import median

from fl.core.rng import derive_generator
from fl.data.synthetic.population import POPULATION_NAME
from fl.privacy.audit.attackers import AuditError
from fl.privacy.audit.inference import check_classes
from fl.tasks.task import DeviceExamples, Example

FEMALE_VOICES, MALE_VOICES = ("f", "Annie", "steph"), ("m", "Mike", "Gene")  # how espeak's variants begin
Labels = dict[str, bool]
Chosen = tuple[str, bool, Example]  # person, whether trained on, utterance


def voices(manifest: Path, devices: Sequence[str]) -> Labels | None:
    """Whether each person of a synthetic population has a female voice; None for any other population, and for voices
    that are mixtures."""
    path = manifest.parent / POPULATION_NAME
    if not path.is_file():
        return None
    try:
        people = json.loads(path.read_text(encoding="utf-8"))["people"]
        variants = {str(person["name"]): str(person["voice"].get("variant", "")) for person in people}
    except (ValueError, KeyError, TypeError) as error:
        raise AuditError(f"{path} is not a population file ({error!r}); make the population again") from error
    spoken = {device: variants.get(device, "") for device in devices}
    if not all(variant.startswith(FEMALE_VOICES + MALE_VOICES) for variant in spoken.values()):
        return None
    return {device: variant.startswith(FEMALE_VOICES) for device, variant in spoken.items()}


def _above_median(shares: Mapping[str, float | None]) -> Labels | None:
    known = {device: share for device, share in shares.items() if share is not None}
    if len(known) < len(shares) or not known:
        return None
    middle = median(known.values())
    return {device: share > middle for device, share in known.items()}


def _share_of_embedded(examples: Sequence[Example], matrix: str) -> float | None:
    words = Counter(language for example in examples for _, language in example.details.get("spans", ()))
    return 1 - words[matrix] / words.total() if words else None


def _share_of_latin(examples: Sequence[Example]) -> float | None:
    pairs = [(example.target, pair[1]) for example in examples for pair in example.details.get("loanwords", ())]
    return sum(latin in target for target, latin in pairs) / len(pairs) if pairs else None


def attributes(devices: Sequence[DeviceExamples], manifest: Path | None) -> tuple[dict[str, Labels], dict[str, str]]:
    """What is known of the people, as two classes each, and why the others cannot be inferred.

    ``voice``: female; ``dominance``: more words in the embedded language than the median person says (the language of most
    words of all is the matrix language); ``spelling``: writes more loanwords in Latin script than the median person. The
    last two are counted in what each person trains on.
    """
    names = [device.device_id for device in devices]
    words = Counter(language for device in devices for e in device.train for _, language in e.details.get("spans", ()))
    matrix = words.most_common(1)[0][0] if words else ""
    found: dict[str, Labels | None] = {
        "voice": voices(manifest, names) if manifest is not None else None,
        "dominance": _above_median({d.device_id: _share_of_embedded(d.train, matrix) for d in devices}),
        "spelling": _above_median({d.device_id: _share_of_latin(d.train) for d in devices}),
    }
    labels, left_out = {}, {}
    for name, classes in found.items():
        try:
            if classes is None:
                raise AuditError("not known of everybody")
            check_classes(classes, name)
            labels[name] = classes
        except AuditError as error:
            left_out[name] = str(error)
    return labels, left_out


def agreements(labels: Mapping[str, Labels]) -> dict[str, float]:
    """For each two attributes the share of people in whom they agree: far from a half, one may be told by the other."""
    return {
        f"{one}={other}": sum(labels[one][d] == labels[other][d] for d in labels[one]) / len(labels[one])
        for one, other in combinations(sorted(labels), 2)
    }


def utterances(devices: Sequence[str], load: Callable[[str], DeviceExamples], seed: int) -> list[Chosen]:
    """Of each person as many that were trained on as were held out, drawn at random: the smaller side whole.

    :class:`AuditError` if nobody has any that were held out.
    """
    chosen: list[Chosen] = []
    for device_id in devices:
        device = load(device_id)
        generator = derive_generator(seed, "audit utterances", device_id)
        sides = {True: device.train, False: (*device.validation, *device.test)}
        count = min(map(len, sides.values()))
        for member, examples in sides.items():
            places = sorted(generator.permutation(len(examples))[:count])
            chosen += [(device_id, member, examples[place]) for place in places]
    if not chosen:
        raise AuditError("nobody has utterances that were not trained on: give a test-share above 0")
    return chosen
