"""What a device does behind the app that came with the run: Python imports this in each process whose PYTHONPATH has the folder.

``IDIOLECT_FAULTS`` is a folder of the device. While it holds ``before-3`` (or ``after-3``), the training message of round 3 waits
before the app sees it (or with the finished reply). ``IDIOLECT_LIES`` names a lie for each round, the first for round 1.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import Array, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

FOLDER = Path(os.environ["IDIOLECT_FAULTS"])
LIES = os.environ.get("IDIOLECT_LIES", "").split()
OTHERS = os.environ.get("IDIOLECT_OTHERS", "").split()
honest = ClientApp.__call__


def foreign(content: RecordDict) -> None:
    """A row for each other device too, with 666 in every tensor."""
    content["devices"]["ids"] += OTHERS
    for name, values in content["counts"].items():
        content["counts"][name] = values * (1 + len(OTHERS))
    for name, array in content.get("updates", {}).items():
        own = array.numpy()
        content["updates"][name] = Array(np.concatenate([own, np.full_like(own.repeat(len(OTHERS), 0), 666)]))


def count(content: RecordDict) -> None:
    """A million of millions of examples."""
    content["counts"]["examples"] = [10**12]


def tensor(content: RecordDict) -> None:
    """A tensor that nobody asked for."""
    content["updates"]["extra"] = Array(np.full((1, 3), 666, np.float32))


def trailer(content: RecordDict) -> None:
    """Bytes behind the data of an array."""
    name, array = next(iter(content["updates"].items()))
    content["updates"][name] = Array(array.dtype, array.shape, array.stype, array.data + b"what was said at home")


def sentence(content: RecordDict) -> None:
    """A sentence as the device's id."""
    content["devices"]["ids"] = ["what was said at home"]


def _wait(gate: Path) -> None:
    if gate.exists():
        gate.with_suffix(".reached").touch()
    while gate.exists():
        time.sleep(0.1)


def faulty(app: ClientApp, message: Message, context: Context) -> Message:
    """The app's answer, late or false."""
    trains = message.metadata.message_type == MessageType.TRAIN
    if not trains:
        reply = honest(app, message, context)
        if message.metadata.message_type == MessageType.EVALUATE and OTHERS:
            foreign(reply.content)
        return reply
    server_round = int(message.content["job"]["round"])  # type: ignore[arg-type]
    _wait(FOLDER / f"before-{server_round}")
    reply = honest(app, message, context)
    lies: dict[str, Callable[[RecordDict], None]] = {
        lie.__name__: lie for lie in (foreign, count, tensor, trailer, sentence)
    }
    for lie in LIES[server_round - 1 : server_round]:
        lies[lie](reply.content)
    _wait(FOLDER / f"after-{server_round}")
    return reply


ClientApp.__call__ = faulty  # type: ignore[method-assign]
