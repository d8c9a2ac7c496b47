"""What a deployed device remembers of its updates: it gives each round of a run one, and no more than its owner allows.

An aggregator that may ask again can take off what protects an answer: two sums over the same devices but one differ by that one's
update, and the mean of many noisy answers is one without noise. So a round is noted on the device's own disk before anything of it
is trained, all runs together, whatever becomes of it then. A simulation notes nothing. A resumed run is another one to Flower: its
repeated round is answered, and counts again.
"""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Annotated

from filelock import FileLock, Timeout
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from clients.store import folder_name
from fl.core.errors import DemandError, StoreError
from fl.core.files import make_folder, write_atomically
from fl.protocol.node import NodeConfig

FOLDER = "answers"
DELTA = 1e-5  # of max-epsilon
LOCK_SECONDS = 10.0


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Answer:
    """A round in which this device gave an update, and the multiplier of the noise that it added by itself; 0 without."""

    run: int  # Flower's id
    arm: str
    round: int
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)]


ANSWERS = TypeAdapter(list[Answer])


def remember(root: Path, node: NodeConfig, answer: Answer) -> None:
    """Durably note an answer that is about to be given.

    Raises :class:`DemandError` if this round was answered before, or the owner's ``max-rounds`` or ``max-epsilon`` are spent, and
    :class:`StoreError` if what was noted before cannot be read: nothing may leave then.
    """
    path = root / FOLDER / f"{folder_name(node.device_id)}.json"
    try:
        make_folder(path.parent)
        with FileLock(path.with_suffix(".lock"), timeout=LOCK_SECONDS):
            answers = _read(path)
            _check(answers, answer, node)
            text = ANSWERS.dump_json([*answers, answer])
            write_atomically(path, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
    except (OSError, Timeout) as error:
        raise StoreError(f"{path} cannot be read or written ({error}): free some space; nothing was sent") from error


def _read(path: Path) -> list[Answer]:
    if not path.exists():
        return []
    digest, _, text = path.read_bytes().partition(b"\n")
    try:
        if hashlib.sha256(text).hexdigest().encode() == digest:
            return ANSWERS.validate_json(text)
    except ValidationError:
        pass
    raise StoreError(
        f"{path} is damaged, and with it the count of what this device gave: restore it from a copy. Without it max-rounds and "
        "max-epsilon would begin anew: remove it only if that is meant"
    )


def _check(answers: list[Answer], answer: Answer, node: NodeConfig) -> None:
    if any((old.run, old.arm, old.round) == (answer.run, answer.arm, answer.round) for old in answers):
        raise DemandError(
            f"this device has answered round {answer.round} of this arm in this run: it answers each once; begin or resume a run"
        )
    if node.max_rounds is not None and len(answers) >= node.max_rounds:
        raise DemandError(
            f"this device has given updates in {len(answers)} rounds of all runs, and max-rounds = {node.max_rounds} of its node-config "
            "allows no more: its owner can raise it"
        )
    if node.max_epsilon is not None:
        from fl.privacy.accounting import (
            ALL,
            PLD,
            REPLACE_ONE,
            Scheme,
            epsilon,
        )  # a second that nobody else should wait

        # Its own noise is all that a device can be sure of, so each answer counts as if it were seen alone.
        rounds = Counter(one.noise_multiplier for one in [*answers, answer])
        spent = epsilon(Scheme(1, 1, ALL, REPLACE_ONE, PLD), rounds, DELTA)
        if spent > node.max_epsilon:
            raise DemandError(
                f"this round would bring what this device gave to epsilon = {spent:.4g} at delta = {DELTA:g}, counting only the noise "
                f"that it adds itself, and max-epsilon = {node.max_epsilon:g} of its node-config allows no more: add more noise at the "
                "devices, or let its owner raise it"
            )
