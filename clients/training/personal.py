"""What a device does for a model of its own (setting ``personalization``), and the adapter with which it decodes.

The shared part is trained as the arm ``global`` trains it, to the bit, except by ``pfedme``. What is a person's own is trained
beside it in the same round, on the shared adapter as it came with the round, and is kept in the device store under names that
no message may hold. Papers: Ditto (arXiv 2012.04221), APFL (2003.13461), pFedMe (2006.08848), FedDPA (2403.19211).
Where they leave freedom, or speak of whole models:

- All train with AdamW and the run's schedule, as every arm does; a person's own part takes ``personal-steps`` steps a round, by
  default as many as the shared part. Its batches are drawn from a seed of their own.
- The own adapter of ``ditto``, ``apfl`` and ``interpolation`` starts as the shared one when the device first takes part.
- ``apfl`` mixes the weights of the models, B A and B' A', not the factors, and alpha moves at every step on the own part.
- ``pfedme`` does not solve its inner problem to a precision but by ``personal-steps`` steps on each batch, and takes as many batches
  as keep the whole at ``local-steps``. The shared adapter follows by ``outer-rate``, eta lambda in the paper. The own one
  starts at the shared one in each round.
- ``feddpa`` trains the two adapters in turns in every round (FedDPA-T). The paper weighs them by how similar an input is to the
  training data; here a gate learns to, with the weights of each rank coordinate apart, so that serving needs nothing new.
- ``interpolation`` is the same with one weight that is divided between the two, and a second adapter that starts as the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clients.store import PrivateState
from clients.training.own import PersonalPlan, train_own
from clients.training.single import LocalPlan, LocalResult
from clients.worker import Worker
from fl.adapters import GatedLoraConfig, load_state
from fl.adapters.blend import Blend, make_blend
from fl.adapters.state import State, adapter_parameters
from fl.algorithms.arms import Arm, adapter_name
from fl.core.rng import derive_seed
from fl.protocol.wire import FEDERATE, Job
from fl.settings.config import RunConfig
from fl.tasks.task import Example

PFEDME = "pfedme"
PFEDME_STEPS = 3  # on each batch
ALL_PRIVATE = "all-private"  # of an adapter in which shared and own are one


@dataclass(frozen=True)
class Placed:
    """Where a device's adapter lies in the model, and which part of it is private."""

    slot: str
    split: str


def arm_blend(config: RunConfig, arm: Arm) -> Blend | None:
    """The blend of an arm, None if its devices have no second adapter."""
    return make_blend(arm.personal, config.personal.mixing)


def own_folder(arm: Arm) -> str:
    """Under which name the device store keeps what a device has beside its adapter in this arm."""
    return f"{arm.name}-own"


def stored_own(worker: Worker, arm: Arm, device_id: str, shared: State, *, before: int) -> State | None:
    """A device's own tensors from before a round, None if it has none yet."""
    blend = arm_blend(worker.config, arm)
    if blend is None:
        return None
    shapes = {name: tuple(tensor.shape) for name, tensor in _start(worker, blend, shared).items()}
    found = worker.store.load(own_folder(arm), device_id, shapes, before=before)
    return None if found is None else found.tensors


def _start(worker: Worker, blend: Blend, shared: State) -> State:
    return blend.start(shared, derive_seed(worker.config.seed, "personal-adapter"))


def blend_slot(worker: Worker, blend: Blend) -> str:
    """Make the adapter slot in which a blend decodes active, adding it at first use; returns its PEFT name."""
    lone = worker.slot("none")
    if blend.ranks == 1 and blend.gate == "none":
        return lone
    name = f"blend-{blend.gate}"
    if name not in worker.adapted.peft_config:
        plain = worker.recipe("none")
        config = GatedLoraConfig(
            r=blend.ranks * plain.size,
            lora_alpha=blend.ranks * plain.alpha,
            gate=blend.gate,
            target_modules=worker.task.targets,
            init_seed=worker.config.seed,
        )
        worker.adapted.add_adapter(name, config)
        worker.adapted.eval()
    worker.adapted.set_adapter(name)
    return name


def place_device(
    worker: Worker, arm: Arm, device_id: str, shared: State, *, before: int, neutral: bool = False
) -> Placed:
    """Put the adapter with which a device decodes into the model, its own part being that from before round ``before``.

    With ``neutral``, and for a device that has nothing of its own yet, it is the shared adapter.
    """
    blend = arm_blend(worker.config, arm)
    personal = None if neutral or blend is None else stored_own(worker, arm, device_id, shared, before=before)
    if blend is None or personal is None:
        worker.place(arm, device_id, shared, before=before, neutral=neutral)
        return Placed(adapter_name(arm.gate), arm.split)
    slot = blend_slot(worker, blend)
    load_state(worker.adapted, blend.build(shared, personal), slot)
    return Placed(slot, ALL_PRIVATE)


def train_own_part(
    worker: Worker, job: Job, arm: Arm, device_id: str, incoming: State, examples: Sequence[Example], plan: LocalPlan
) -> tuple[State, LocalResult] | None:
    """Train and keep what is a device's own in this round, beside ``incoming``; None where there is nothing to do.

    Returns the shared adapter, which only ``pfedme`` moves, and what was done. ``plan`` is that of the shared part.
    """
    blend = arm_blend(worker.config, arm)
    if blend is None or job.phase != FEDERATE or not plan.steps:
        return None
    personal = None if arm.personal == PFEDME else stored_own(worker, arm, device_id, incoming, before=job.round)
    slot = blend_slot(worker, blend)
    trained, shared, result = train_own(
        worker.adapted,
        adapter_parameters(worker.adapted, slot),
        blend,
        incoming,
        personal or _start(worker, blend, incoming),
        worker.task,
        examples,
        own_plan(worker.config, arm, plan),
        seed=derive_seed(worker.config.seed, job.round, device_id, "train-own"),
    )
    worker.store.save(own_folder(arm), device_id, PrivateState(job.round, trained))
    return shared, result


def own_plan(config: RunConfig, arm: Arm, plan: LocalPlan) -> PersonalPlan:
    """What a device does for its own part in a round, given what it does for the shared one."""
    ours = config.personal
    repeat, batches = 1, ours.personal_steps or plan.steps
    if arm.personal == PFEDME:
        repeat = ours.personal_steps or PFEDME_STEPS
        batches = max(1, plan.steps // repeat)
    return PersonalPlan(
        batches=batches,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        gate_learning_rate=plan.private_learning_rate,
        mixing_learning_rate=ours.mixing_learning_rate,
        repeat=repeat,
        pull=ours.personal_pull if arm.personal in ("ditto", PFEDME) else 0.0,
        outer=ours.outer_rate if arm.personal == PFEDME else 0.0,
        clipping_norm=plan.clipping_norm,
        weight_decay=plan.weight_decay,
    )
