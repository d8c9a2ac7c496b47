"""A whole session in one process, for audits and tests: what the server receives, and the sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fl.privacy.secure_sum.device import SecureSumClient
from fl.privacy.secure_sum.keys import RandomBytes
from fl.privacy.secure_sum.messages import MaskedInput, SecureSumSetup
from fl.privacy.secure_sum.server import SecureSumServer


def run_session(
    setup: SecureSumSetup, vectors: Mapping[str, NDArray[np.floating]], random_bytes: Callable[[str], RandomBytes]
) -> tuple[dict[str, MaskedInput], NDArray[np.float64]]:
    """Each device's masked vector, and the sum of ``vectors`` ``(size,)`` by device; nobody drops out.

    ``random_bytes`` gives a device its source of secrets: a seeded one makes the session deterministic.
    """
    server = SecureSumServer(setup)
    clients = {device: SecureSumClient(device, setup, random_bytes(device)) for device in setup.devices}
    for client in clients.values():
        server.add(client.advertise())
    participants = server.participants()
    for client in clients.values():
        server.add(client.share(participants))
    masked = {device: client.mask(server.inbox(device), vectors[device]) for device, client in clients.items()}
    for message in masked.values():
        server.add(message)
    survivors = server.survivors()
    for client in clients.values():
        server.add(client.reveal(survivors))
    return masked, server.total()
