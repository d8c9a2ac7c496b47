"""A model for each cluster of devices whose updates point the same way.

Clustered federated learning (Sattler, Mueller and Samek 2019, arXiv 1910.01991). All devices begin in one cluster. A cluster of
which every device answered in a round, with updates d_k and shares of examples p_k within it, is divided once

    |sum_k p_k d_k| <= agreement max_k |d_k|

that is, once its devices still move but no longer together (eq. 9 and 10 with thresholds relative to each other, so that they
do not depend on rates and sizes). It is divided into the two parts whose most similar pair of updates, one from each, is
least similar (eq. 14); similarity is the cosine of the angle between two updates. This is where single linkage stops at two groups.
Each part goes on from the mean of its own devices. Where the paper divides without end, ``count`` is the most there may be, and
a larger cluster is divided first. A held-out speaker gets the model of the largest cluster.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fl.aggregation.mean import mean
from fl.aggregation.pairs import shares
from fl.aggregation.updates import DeviceUpdate, Tensors, moved
from fl.algorithms.base import About, Aggregator, Algorithm, Capabilities, Role, Round
from fl.settings.fields import setting

log = logging.getLogger("idiolect.server")
MEMBERS, MODEL = "members", "cluster-"


@dataclass
class ClusterAggregator(Aggregator):
    """FedAvg within each cluster. The update that a round gives back is that of the largest one.

    ``models`` are the shared tensors by cluster, from 0; ``members`` the cluster of each device of the arm. Both are empty before the first
    round and all that a resumed run needs.
    """

    rule: Clusters
    models: list[dict[str, np.ndarray]] = field(default_factory=list)
    members: dict[str, int] = field(default_factory=dict)

    def recipients(
        self, devices: tuple[str, ...], shared: Tensors, *, training: bool, held_out: bool = False
    ) -> list[tuple[tuple[str, ...], Tensors]]:
        """Each device gets its cluster's model; whoever is in none, that of the largest, which is ``shared``."""
        if training and not self.models:
            self.models = [dict(shared)]
        if training:
            self.members = {**dict.fromkeys(devices, 0), **self.members}
        place = {} if held_out else self.members
        found = []
        for cluster in sorted({place.get(device_id, -1) for device_id in devices}):
            chosen = tuple(d for d in devices if place.get(d, -1) == cluster)
            found.append((chosen, shared if cluster < 0 else self.models[cluster]))
        return found

    def aggregate(self, found: Round) -> dict[str, np.ndarray]:
        """The mean of each cluster, divided where its devices disagree; where it leads for the largest cluster."""
        for cluster in self._largest_first():
            inside = [update for update in found.updates if self.members[update.device_id] == cluster]
            parts = [inside]
            if len(self.models) < self.rule.count and len(inside) == sum(c == cluster for c in self.members.values()):
                parts = divided(inside, self.rule.agreement)
            start = self.models[cluster]
            for number, part in enumerate(parts):
                if not part:
                    continue
                model = moved(start, mean(part))
                if number:
                    self.members |= dict.fromkeys((update.device_id for update in part), len(self.models))
                    self.models.append(model)
                    log.info("a cluster is divided: %s go on together", ", ".join(u.device_id for u in part[:10]))
                else:
                    self.models[cluster] = model
        largest = self.models[self._largest_first()[0]]
        return {name: np.subtract(largest[name], x, dtype=np.float64) for name, x in found.start.items()}

    def _largest_first(self) -> list[int]:
        sizes = [sum(c == cluster for c in self.members.values()) for cluster in range(len(self.models))]
        return sorted(range(len(self.models)), key=lambda cluster: (-sizes[cluster], cluster))

    def state(self) -> dict[str, np.ndarray]:
        """The models, and the cluster of each device in the order of the arm's devices, sorted."""
        state = {f"{MODEL}{i}:{name}": values for i, model in enumerate(self.models) for name, values in model.items()}
        return {**state, MEMBERS: np.array([self.members[d] for d in sorted(self.members)], np.int64)}

    def restore(self, state: Mapping[str, np.ndarray], devices: Sequence[str]) -> None:
        """Continue from :meth:`state`."""
        if MEMBERS not in state:
            return
        self.members = dict(zip(devices, map(int, state[MEMBERS]), strict=True))
        self.models = [{} for _ in range(1 + max(self.members.values()))]
        for key, values in state.items():
            if key.startswith(MODEL):
                cluster, _, name = key.removeprefix(MODEL).partition(":")
                self.models[int(cluster)][name] = np.array(values)


class Clusters(Algorithm):
    """Clustered federated learning."""

    name = "clusters"
    role = Role.PERSONALIZATION
    about = About("Sattler et al. 2019", "1910.01991", "A and B", "a model for each cluster of devices")
    can = Capabilities(sums=False, encoded=False, optimizer=False, sampled=False)
    decides_split = True
    aggregates = True
    count: int = setting(4, "at most so many models", low=1, high=1000)
    agreement: float = setting(
        0.4, "a cluster is divided once its mean update is at most this share of its longest", low=0.0, high=1.0
    )

    def aggregator(self) -> Aggregator:
        """FedAvg within clusters."""
        return ClusterAggregator(self)


def divided(updates: list[DeviceUpdate], agreement: float) -> list[list[DeviceUpdate]]:
    """The updates of one cluster, in two groups if they disagree; the first has the first device."""
    if len(updates) < 2:
        return [updates]
    rows = np.stack([_as_row(update) for update in updates])
    norms = np.linalg.norm(rows, axis=1)
    average = shares([update.examples for update in updates]) @ rows
    if not norms.max() > 0 or np.linalg.norm(average) > agreement * norms.max():
        return [updates]
    directions = rows / np.where(norms > 0, norms, 1.0)[:, None]
    group = bipartition(directions @ directions.T)
    return [[update for update, side in zip(updates, group, strict=True) if side == wanted] for wanted in (0, 1)]


def _as_row(update: DeviceUpdate) -> np.ndarray:
    tensors = update.tensors or {}
    return np.concatenate([np.ravel(tensors[name].astype(np.float64)) for name in sorted(tensors)])


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
