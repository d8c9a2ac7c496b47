"""What the aggregator does for personalization: a model for each cluster of devices whose updates point the same way.

Clustered federated learning (Sattler, Mueller and Samek 2019, arXiv 1910.01991). All devices begin in one cluster. A cluster of
which every device answered in a round, with updates d_k and shares of examples p_k within it, is divided once

    |sum_k p_k d_k| <= cluster-agreement max_k |d_k|

that is, once its devices still move but no longer together (eq. 9 and 10 with thresholds relative to each other, so that they
do not depend on rates and sizes). It is divided into the two parts whose most similar pair of updates, one from each, is
least similar (eq. 14); similarity is the cosine of the angle between two updates. This is where single linkage stops at two groups.
Each part goes on from the mean of its own devices. Where the paper divides without end, ``clusters`` is the most there may be, and
a larger cluster is divided first. A person who never took part gets the model of the largest cluster.

Other personalizations need nothing here: their shared part is aggregated by whatever strategy the run has.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType
from flwr.serverapp import Grid

from fl.aggregation.pairs import shares
from fl.algorithms.arms import BY_GATES
from fl.core.errors import ConfigError
from fl.settings.config import RunConfig
from fl.settings.names import DEVICE, NONE
from strategies.averaging import average
from strategies.base import SharedFedAvg
from strategies.replies import DeviceReply

log = logging.getLogger("idiolect.server")
CLUSTERS = "clusters"
MEMBERS, MODEL = "members", "cluster-"
NEW_PERSON_ARM = "neutral"


@dataclass
class ClusteredFedAvg(SharedFedAvg):
    """FedAvg within each cluster. The shared tensors that a round gives back are those of the largest one.

    ``models`` are the shared tensors by cluster, from 0; ``members`` the cluster of each device of the job. Both are empty before the first
    round and all that a resumed run needs.
    """

    single_devices: ClassVar[bool] = True
    most: int = 4
    agreement: float = 0.4
    models: list[dict[str, np.ndarray]] = field(default_factory=list)
    members: dict[str, int] = field(default_factory=dict)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """To each node a message for each cluster that it hosts devices of, with the cluster's shared tensors."""
        if not self.models:
            self.models = [{name: array.numpy() for name, array in arrays.items()}]
            self.members = dict.fromkeys(self.job.devices, 0)
        list(super().configure_train(server_round, arrays, config, grid))  # the sample and the shapes of this round
        return self._by_cluster(MessageType.TRAIN, server_round, arrays)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Each device evaluates its cluster's model; whoever is in none, and all as new people would, that of the largest."""
        self._asked = tuple(self.job.devices)
        return self._by_cluster(MessageType.EVALUATE, server_round, arrays)

    def _by_cluster(self, kind: str, server_round: int, arrays: ArrayRecord) -> list[Message]:
        place = {} if self.job.arm == NEW_PERSON_ARM else self.members
        messages: list[Message] = []
        for cluster in sorted({place.get(device_id, -1) for device_id in self._asked}):
            devices = tuple(d for d in self._asked if place.get(d, -1) == cluster)
            model = arrays if cluster < 0 else _record(self.models[cluster])
            messages += self._messages(kind, server_round, model, devices, self.job.phase)
        return messages

    def aggregate(self, replies: tuple[DeviceReply, ...]) -> ArrayRecord:
        """The mean of each cluster, divided where its devices disagree; the shared tensors of the largest cluster."""
        for cluster in self._largest_first():
            inside = [reply for reply in replies if self.members[reply.device_id] == cluster]
            parts = [inside]
            if len(self.models) < self.most and len(inside) == sum(c == cluster for c in self.members.values()):
                parts = divided(inside, self.models[cluster], self.agreement)
            for number, part in enumerate(parts):
                if not part:
                    continue
                mean = average(part, {reply.device_id: reply.examples for reply in part})
                model = {name: array.numpy() for name, array in mean.items()}
                if number:
                    self.members |= dict.fromkeys((reply.device_id for reply in part), len(self.models))
                    self.models.append(model)
                    log.info("a cluster is divided: %s go on together", ", ".join(r.device_id for r in part[:10]))
                else:
                    self.models[cluster] = model
        return _record(self.models[self._largest_first()[0]])

    def _largest_first(self) -> list[int]:
        sizes = [sum(c == cluster for c in self.members.values()) for cluster in range(len(self.models))]
        return sorted(range(len(self.models)), key=lambda cluster: (-sizes[cluster], cluster))

    def server_state(self) -> dict[str, np.ndarray]:
        """The models, and the cluster of each device in the order of the job's devices, sorted."""
        state = {f"{MODEL}{i}:{name}": values for i, model in enumerate(self.models) for name, values in model.items()}
        return {**state, MEMBERS: np.array([self.members[d] for d in sorted(self.members)], np.int64)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from :meth:`server_state`; the devices are those of the roster that train."""
        if MEMBERS not in state:
            return
        self.members = dict(zip(self.roster.training, map(int, state[MEMBERS]), strict=True))
        self.models = [{} for _ in range(1 + max(self.members.values()))]
        for key, values in state.items():
            if key.startswith(MODEL):
                cluster, _, name = key.removeprefix(MODEL).partition(":")
                self.models[int(cluster)][name] = np.array(values)


def _record(model: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(values) for name, values in model.items()})


def divided(replies: list[DeviceReply], before: Mapping[str, np.ndarray], agreement: float) -> list[list[DeviceReply]]:
    """The replies of one cluster, in two groups if they disagree; the first has the first device. ``before``: what they started from."""
    if len(replies) < 2:
        return [replies]
    updates = np.stack([_update(reply, before) for reply in replies])
    norms = np.linalg.norm(updates, axis=1)
    mean = shares([reply.examples for reply in replies]) @ updates
    if not norms.max() > 0 or np.linalg.norm(mean) > agreement * norms.max():
        return [replies]
    directions = updates / np.where(norms > 0, norms, 1.0)[:, None]
    group = bipartition(directions @ directions.T)
    return [[reply for reply, side in zip(replies, group, strict=True) if side == wanted] for wanted in (0, 1)]


def _update(reply: DeviceReply, before: Mapping[str, np.ndarray]) -> np.ndarray:
    assert reply.shared is not None
    return np.concatenate([np.ravel(reply.shared[name].astype(np.float64) - before[name]) for name in sorted(before)])


def bipartition(similarity: np.ndarray) -> list[int]:
    """Two groups, 0 (that of the first) and 1, whose largest similarity across is as small as it can be.

    ``similarity`` is (devices, devices). The most similar pairs are joined first until two groups are left.
    """
    count = len(similarity)
    group = list(range(count))
    pairs = sorted(((i, j) for i in range(count) for j in range(i)), key=lambda pair: (-similarity[pair], pair))
    left = count
    for i, j in pairs:
        if left == 2:
            break
        if group[i] != group[j]:
            gone, kept = group[i], group[j]
            group = [kept if g == gone else g for g in group]
            left -= 1
    return [int(g != group[0]) for g in group]


def check_personalization(config: RunConfig) -> None:
    """Refuse what a personalization cannot go together with: :class:`ConfigError` before anything is written or loaded."""
    method, federation = config.personal.personalization, config.federation
    if method == BY_GATES:
        return
    if "personalized" not in config.arms:
        raise ConfigError(
            f"personalization = {method!r} is what the arm personalized does, and arms = {federation.arms!r}: add personalized"
        )
    if config.adapter.split != "gates":
        raise ConfigError(
            f"personalization = {method!r} decides by itself what is private, and split = {config.adapter.split!r} says otherwise: "
            "leave split at 'gates', or set personalization = 'gates'"
        )
    for name, value, wanted in _refused(config):
        raise ConfigError(f"personalization = {method!r} does not go with {name} = {value!r}: set {name} = {wanted!r}")


def _refused(config: RunConfig) -> Iterator[tuple[str, object, object]]:
    """Settings that the personalization cannot work with, and a value that it can."""
    method, federation, ours, steps = (
        config.personal.personalization,
        config.federation,
        config.personal,
        config.train.local_steps,
    )
    if method == "fedrep" and max(ours.personal_steps + 1, 2) > steps:  # one step at least for each part
        yield "local-steps", steps, max(ours.personal_steps + 1, 2)
    if method == "pfedme":
        if federation.strategy in ("rolora", "scaffold"):
            yield "strategy", federation.strategy, "fedavg"
        if config.train.proximal:
            yield "proximal", config.train.proximal, 0.0
        if ours.personal_steps > steps:
            yield "personal-steps", ours.personal_steps, steps
    if method == CLUSTERS:
        rows = (
            ("strategy", federation.strategy, "fedavg"),
            ("server-optimizer", federation.server_optimizer, NONE),
            ("aggregation", federation.aggregation, DEVICE),
            ("sample", federation.sample, 1.0),
            ("attack", federation.attack, NONE),
            ("codec", config.privacy.codec, "fp32"),
        )
        yield from (row for row in rows if row[1] != row[2])
