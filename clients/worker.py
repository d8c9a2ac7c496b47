"""What one worker process keeps between messages: the task with its frozen base, and what is trained on it.

An adapter of low rank has a slot for each gate on one model; any other method (:mod:`fl.methods`) has a model of its own.

A Ray actor or a thread of a simulation handles many messages of a run and a deployed ClientApp one; all ask :func:`get_worker`. The
base is loaded once per process and configuration.
"""

import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from clients.store import DeviceStore
from fl.adapters.correction import corrected_fingerprint
from fl.adapters.files import AdapterInfo, save_adapter
from fl.adapters.ranks import device_rank, reduced
from fl.adapters.split import Split, make_split
from fl.adapters.stacked import StackedModel
from fl.adapters.state import State, adapter_parameters, adapter_state
from fl.algorithms.arms import EVERYONE, Arm, adapter_name
from fl.algorithms.hostile import attacked
from fl.algorithms.table import chosen
from fl.core.errors import PopulationError
from fl.core.machine import available_cores
from fl.methods.base import Attached, Recipe
from fl.methods.files import MethodInfo, save_method
from fl.methods.lora import peft_config
from fl.methods.recipes import attach, make_recipe
from fl.methods.table import METHODS
from fl.settings.config import RunConfig
from fl.tasks.table import load_task
from fl.tasks.task import Example, Task

building = (
    threading.RLock()
)  # transformers patches torch while it makes a model, and random weights have a seed of the whole process


class Worker:
    """One process's frozen base with an adapter slot per gate kind, and the private state of the devices it hosts."""

    def __init__(self, config: RunConfig, store_root: Path, run: str = "") -> None:
        self.config = config
        with building:
            self.task: Task = attacked(load_task(config), config)
        self.method = METHODS[config.adapter.method]
        self.store = DeviceStore(store_root, self.task.fingerprint, run)
        self._slots: dict[str, Attached] = {}  # by PEFT's name
        self._initial: dict[str, State] = {}
        self._recipes: dict[str, Recipe] = {}
        self._model: PeftModel | None = None

    def slot(self, gate: str) -> str:
        """Make the adapter slot for ``gate`` active, adding it at first use; returns its PEFT name."""
        name = adapter_name(gate)
        if name not in self._slots:
            with building:
                self._slots[name] = self._attach(name, self.recipe(gate))
            self._initial[name] = self._slots[name].state()
        if self.method.low_rank and self.adapted.active_adapter != name:  # PEFT walks through all modules to set one
            self.adapted.set_adapter(name)
        return name

    def _attach(self, name: str, recipe: Recipe) -> Attached:
        if not self.method.low_rank:
            attached = attach(self.task.new_model(), recipe)
            self._model = attached.model
            return attached
        if self._model is None:
            self._model = get_peft_model(self.task.model, peft_config(recipe), adapter_name=name)
        else:
            self._model.add_adapter(name, peft_config(recipe))
        self._model.eval()
        return Attached(self._model, adapter_parameters(self._model, name))

    def recipe(self, gate: str) -> Recipe:
        """What decides the trained tensors of an adapter with this gate."""
        if gate not in self._recipes:
            self._recipes[gate] = make_recipe(self.config, self.task, gate)
        return self._recipes[gate]

    @property
    def adapted(self) -> PeftModel:
        """The base with its adapter slots, or with the method that is on it; call :meth:`slot` first."""
        assert self._model is not None
        return self._model

    @contextmanager
    def frozen(self) -> Iterator[nn.Module]:
        """Within the block, a model that computes what the frozen base computes."""
        if not self.method.low_rank:
            yield self.task.model
            return
        self.slot("none")
        with self.adapted.disable_adapter():
            yield self.adapted

    def initial(self, gate: str) -> State:
        """A fresh adapter: A from the seed, B and gates zero. The same on every node, since the seed and names decide it."""
        return self._initial[self.slot(gate)]

    def split(self, arm: Arm) -> Split:
        """The shared/private split of an arm."""
        return make_split(arm.split, self.initial(arm.gate))

    def active(self, gate: str) -> Attached:
        """The adapter slot of a gate, made active: its live parameters and what lies in them."""
        return self._slots[self.slot(gate)]

    def place(self, arm: Arm, device_id: str, shared: dict[str, Tensor], *, before: int, neutral: bool = False) -> None:
        """Put one device's adapter into its slot: fresh values, its private tensors unless ``neutral``, then ``shared``.

        Private tensors are those from before round ``before``.
        """
        state = self.assembled(arm, device_id, shared, before=before, neutral=neutral)
        self.active(arm.gate).load(state)

    def assembled(
        self, arm: Arm, device_id: str, shared: Mapping[str, Tensor], *, before: int, neutral: bool = False
    ) -> State:
        """What :meth:`place` puts into the slot, at the device's rank. Tensors that it does not have of its own are not copies."""
        split, state = self.split(arm), dict(self.initial(arm.gate))
        if not neutral and split.private:
            shapes = {n: tuple(state[n].shape) for n in split.private}
            stored = self.store.load(arm.name, device_id, shapes, before=before)
            if stored is not None:
                state.update(stored)
        state.update(shared)
        # What all data in one place would give is a bound, whoever decodes with it.
        return state if arm.devices == EVERYONE else self.at_rank(state, device_id)

    def at_rank(self, state: State, device_id: str) -> State:
        """An adapter's tensors as a device of its rank has them."""
        config, rank = self.config, device_rank(self.config, device_id)
        best = chosen(config).shared.can.ranks == "best"
        return reduced(state, rank, best=best) if rank < config.adapter.rank else state

    def vary(self, examples: Sequence[Example], seed: int) -> Sequence[Example]:
        """A device's training examples for one local phase, varied where the task and the settings do so."""
        return self.task.varied(examples, seed)

    def keep_private(self, arm: Arm, device_id: str, round_index: int, state: State) -> None:
        """Write the device's private tensors of ``state`` to the store."""
        split = self.split(arm)
        if split.private:
            self.store.save(arm.name, device_id, round_index, {n: state[n] for n in split.private})

    def save(self, folder: Path, slot: str, split: str, corrections: State | None = None) -> None:
        """Write what a slot holds as an adapter's folder, for a base that has ``corrections`` in its weights.

        A model that is trained whole is kept by the run's checkpoint alone.
        """
        task = self.task
        fingerprint = corrected_fingerprint(task.fingerprint, corrections or {})
        if self.method.low_rank:
            config = self.adapted.peft_config[slot]
            info = AdapterInfo(task.base_name, fingerprint, split, config, **task.adapter_facts)
            save_adapter(folder, adapter_state(self.adapted, slot), info)
        elif not self.method.whole:
            (recipe,) = self._recipes.values()
            method = MethodInfo(task.base_name, fingerprint, split, recipe, **task.adapter_facts)
            save_method(folder, self._slots[slot].state(), method)

    @cached_property
    def places(self) -> dict[str, int]:
        """The place of each device in the population, from 0. Raises :class:`PopulationError` for one that stands twice."""
        return positions(self.task.device_ids(), "the population")

    @cached_property
    def host(self) -> StackedModel:
        """A model on the same frozen tensors for the adapters of many devices at once."""
        with building:
            return StackedModel(self.task.new_model(), self.task.targets)


def positions(ids: Iterable[str], source: str) -> dict[str, int]:
    """The place of each id, from 0. Raises :class:`PopulationError` for an id that stands twice, with both places from 1."""
    found: dict[str, int] = {}
    for place, device_id in enumerate(ids):
        if found.setdefault(device_id, place) != place:
            raise PopulationError(
                f"{source} lists device {device_id!r} twice, as number {found[device_id] + 1} and {place + 1}: "
                "give each device an id of its own"
            )
    return found


class _Kept(threading.local):
    """The last workers of each thread: what one does to its adapters is nothing to another's, and they end with it."""

    def __init__(self) -> None:
        self.worker = lru_cache(maxsize=2)(Worker)


kept = _Kept()


def get_worker(config: RunConfig, store_root: Path, run: str = "") -> Worker:
    """The worker of this thread for this configuration and run: a second message finds the base in memory."""
    return kept.worker(config, store_root, run)


def step_threads(parallel: int) -> int:
    """Threads for one message's computation when ``parallel`` messages are in flight on this machine.

    Inside Ray at least the CPUs that the actor was given; alone on the machine, all of them. ``OMP_NUM_THREADS`` bounds them
    outside Ray, which sets it itself: two runs side by side that take all cores each mostly wait for one another.
    """
    share, given = max(1, available_cores() // max(1, parallel)), _ray_cpus()
    return max(share, given) if given else min(share, _most_threads() or share)


def _most_threads() -> int:
    """What ``OMP_NUM_THREADS`` says, of which a list names nested levels; 0 for nothing."""
    most = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(most) if most.isdecimal() else 0


def _ray_cpus() -> int:
    ray = sys.modules.get("ray")  # an actor has it loaded; elsewhere loading it would cost seconds for nothing
    if ray is None or not ray.is_initialized():
        return 0
    return int(ray.get_runtime_context().get_assigned_resources().get("CPU", 0))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with ``count`` torch threads and restore the number after."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
