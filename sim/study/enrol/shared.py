"""The shared part that people are enrolled on: the arm ``global`` of a run, in this process, and made to be adapted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from clients.training.cohort import Member, MemberResult, activation_bytes, train_cohort
from clients.training.enrol_method import EnrolMethod
from clients.training.private_part import Adapter, Start
from fl.adapters.directions import read_directions, stored_directions
from fl.adapters.files import AdapterInfo, load_adapter, save_adapter
from fl.adapters.split import Split, make_split
from fl.adapters.stacked import Slot, StackedModel
from fl.adapters.state import State
from fl.aggregation.directions import main_directions
from fl.aggregation.updates import DeviceUpdate, moved
from fl.algorithms.arms import EVERYONE, Arm, trained_arm
from fl.algorithms.base import Round
from fl.algorithms.plan import LocalPlan, in_one_place
from fl.algorithms.server_optimizers import ServerOptimizer
from fl.core.errors import ConfigError, RunError
from fl.core.rng import derive_random, derive_seed
from fl.methods.lora import peft_config
from fl.methods.recipes import fresh_state, make_recipe
from fl.settings.config import RunConfig, cohort_size, flat
from fl.settings.names import NONE
from fl.tasks.speech.task import SpeechTask
from fl.tasks.task import Example

Taught = Callable[[Sequence[Example], int], Sequence[Example]]
Progress = Callable[[str, int, int], None]  # what is being done, done, total
EPISODES, EPISODE_EXAMPLES, EPISODE_STEP = 12, 5, 0.5
PLAIN = (
    "adapter.method",
    "adapter.device-ranks",
    "algorithm.name",
    "attack.name",
    "codec.name",
    "federation.aggregation",
    "federation.sample",
    "privacy.dp.mode",
    "privacy.secure-sum.mode",
)  # settings whose default alone is carried out here


class SharedTraining:
    """Federated training of a task's participants without messages: the numbers of ``idiolect run``."""

    def __init__(self, config: RunConfig, task: SpeechTask, host: StackedModel) -> None:
        """Raises :class:`ConfigError` for settings of a run that this training does not carry out."""
        asked, plain = flat(config), flat(RunConfig())
        if told := ", ".join(f"{key} = {asked[key]}" for key in PLAIN if asked[key] != plain[key]):
            raise ConfigError(
                f"this study trains the shared adapter without messages, by fedavg of all: leave out {told}"
            )
        self.config, self.task, self.host = config, task, host
        self.device = next(host.model.parameters()).device
        names = [name for name in task.device_ids() if not task.is_new(name)]
        self.people = {name: task.device(name).train for name in names if task.device(name).train}
        if not self.people:
            raise RunError("nobody has a sentence to train on: give more sentences, or hold out fewer speakers")

    def adapter(self, state: State) -> Adapter:
        """``state`` as people start from it."""
        recipe = make_recipe(self.config, self.task, "none")
        return Adapter(Slot.of(peft_config(recipe)), state)

    def trained(self, progress: Progress, *, arm_name: str = "global", taught: Taught | None = None) -> State:
        """The shared tensors after the last round of an arm, ``global`` or ``centralized``; ``taught`` is what a person's examples are
        changed to, by the seed of a round."""
        config = self.config
        arm = trained_arm(arm_name, config)
        assert arm is not None
        everyone = {EVERYONE: [example for own in self.people.values() for example in own]}
        own = self.people if arm.federates else everyone
        state = fresh_state(config, self.task, arm.gate)
        split = make_split(arm.split, state)
        aggregator, table = arm.aggregation.aggregator(), config.server_optimizer
        served = arm.federates and table.name != NONE
        optimizer = ServerOptimizer(table.name, table.rate, table.momentum) if served else None
        for number in range(1, arm.schedule.rounds + 1):
            progress("shared training", number - 1, arm.schedule.rounds)
            plan = self._plan(arm, number)
            seeds = {name: derive_seed(config.seed, number, name, "train") for name in own}
            start = {name: tensor.numpy() for name, tensor in state.items()}
            people: Mapping[str, Sequence[Example]] = own
            if taught is not None:
                people = {name: taught(examples, seeds[name]) for name, examples in people.items()}
            updates = tuple(
                DeviceUpdate(
                    name,
                    {n: t.numpy() - start[n] for n, t in one.state.items()},
                    numbers={"examples": min(len(own[name]), config.federation.max_examples or len(own[name]))},
                )
                for name, one in self._locally(split, state, plan, people, seeds)
            )
            update = aggregator.aggregate(Round(number, start, updates, steps=plan.steps))
            if optimizer is not None:
                update = optimizer.step(update, aggregator.moving(sorted(update), number))
            state = {name: torch.from_numpy(values) for name, values in moved(start, update).items()}
        progress("shared training", arm.schedule.rounds, arm.schedule.rounds)
        return state

    def adapted(self, state: State, method: EnrolMethod, progress: Progress) -> State:
        """``state`` after episodes of Reptile (Nichol et al. 2018, arXiv 1803.02999): in each, every participant enrols by ``method``
        on a few sentences, and what the method trains goes a share of the mean way."""
        start = Start.of(self.adapter(state), method, seed=self.config.seed)
        plan = LocalPlan(
            0,
            method.batch_size,
            method.rate,
            method.rate,
            private_steps=method.steps,  # the steps of an enrolment
        )
        for episode in range(EPISODES):
            progress("episodes", episode, EPISODES)
            drawn: dict[str, Sequence[Example]] = {}
            for name, examples in self.people.items():
                random = derive_random(self.config.seed, "episode", episode, name)
                drawn[name] = random.sample(examples, min(EPISODE_EXAMPLES, len(examples)))
            seeds = {name: derive_seed(self.config.seed, "episode", episode, name, "steps") for name in drawn}
            found = [one.state for _, one in self._locally(start.split, state, plan, drawn, seeds)]
            for name in start.split.private:
                away = torch.stack([one[name] for one in found]).mean(0) - state[name]
                state = {**state, name: state[name] + EPISODE_STEP * away}
        progress("episodes", EPISODES, EPISODES)
        return state

    def local(self, state: State, people: Mapping[str, Sequence[Example]] | None = None, later: int = 1) -> list[State]:
        """Each participant's tensors after one more round's local training from ``state``, like the last round's; those of other
        ``people`` with their examples, and of a round still ``later``."""
        arm = trained_arm("global", self.config)
        assert arm is not None
        last = arm.schedule.rounds
        people = self.people if people is None else people
        seeds = {name: derive_seed(self.config.seed, last + later, name, "train") for name in people}
        found = self._locally(make_split(arm.split, state), state, self._plan(arm, last), people, seeds)
        return [one.state for _, one in found]

    def directions(self, state: State, part: Sequence[str], count: int) -> State:
        """``count`` directions of the updates of ``part`` in one more round, as they lie beside a shared adapter."""
        updates = [{name: (one[name] - state[name]).numpy() for name in part} for one in self.local(state)]
        return read_directions(stored_directions(main_directions(updates, part, count)))

    def _plan(self, arm: Arm, number: int) -> LocalPlan:
        """What a round asks of everybody."""
        plan = arm.schedule.plan(number)
        if not arm.federates:
            plan = in_one_place(plan, len(self.people))
        for algorithm in arm.algorithms:
            plan = algorithm.local(plan, number)
        return plan

    def _locally(
        self,
        split: Split,
        state: State,
        plan: LocalPlan,
        people: Mapping[str, Sequence[Example]],
        seeds: Mapping[str, int],
    ) -> Iterator[tuple[str, MemberResult]]:
        """Each person's tensors after ``plan``, in cohorts: of all on a GPU."""
        slot, names = self.adapter(state).slot, list(people)
        size = len(names) if self.device.type == "cuda" else cohort_size(self.config.train)
        budget = activation_bytes(self.device)
        for first in range(0, len(names), size):
            chunk = names[first : first + size]
            members = [Member(n, slot, state, self.task.varied(people[n], seeds[n]), plan, seeds[n]) for n in chunk]
            for name, one in zip(chunk, train_cohort(self.host, self.task, split, members, budget=budget), strict=True):
                if isinstance(one, Exception):
                    raise one
                yield name, one

    def kept(self, folder: Path, make: Callable[[], State]) -> State:
        """The tensors in the adapter's ``folder``; what ``make`` gives where there is none, which is written there."""
        if folder.is_dir():
            tensors, info = load_adapter(folder)
            info.require_base(self.task.fingerprint)
            return tensors
        state = make()
        config = peft_config(make_recipe(self.config, self.task, "none"))
        save_adapter(
            folder,
            state,
            AdapterInfo(self.task.base_name, self.task.fingerprint, "all-shared", config, **self.task.adapter_facts),
        )
        return state
