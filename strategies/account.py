"""The account of a private run: what each round costs, when the run must stop, and what is said at its end."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fl.codecs.table import make_codec
from fl.privacy.accounting import statement
from fl.privacy.ledger import BudgetError, Ledger
from fl.privacy.plan import PrivacyPlan
from fl.runs.files import write_document
from fl.runs.schema import PRIVACY_NAME, PrivacyRecord
from fl.settings.config import RunConfig
from fl.settings.names import DISTRIBUTED_NOISE, LOCAL_NOISE, NONE, SERVER_NOISE

log = logging.getLogger("idiolect.server")
LEDGER_NAME = "privacy-ledger.jsonl"


@dataclass
class Account:
    """Charges rounds to the run's ledger. Without noise there is no ledger, and rounds cost nothing that has a number."""

    config: RunConfig
    plan: PrivacyPlan
    simulated: bool
    ledger: Ledger | None

    @classmethod
    def opened(cls, folder: Path, config: RunConfig, plan: PrivacyPlan, *, simulated: bool) -> Account:
        """The account of a run folder. Raises :class:`BudgetError` if it cannot pay for a single round of a new run."""
        if plan.scheme is None or plan.budget is None:
            return cls(config, plan, simulated, None)
        # Everything that the guarantee depends on; rows, output folder and the like may differ.
        settings: dict[str, str | int | float] = {
            name: value
            for name, value in asdict(plan).items()
            if isinstance(value, str | int | float) and name not in ("rounds", "noise_multiplier")
        }
        ledger = Ledger(folder / LEDGER_NAME, plan.scheme, plan.budget, {**settings, "simulated": int(simulated)})
        if not ledger.charges:
            _require_means(ledger, plan)
        return cls(config, plan, simulated, ledger)

    def charge(self, arm: str, server_round: int) -> None:
        """Pay for a round before it starts; :class:`BudgetError` if it cannot be paid.

        A simulation that is resumed repeats a round with the same sample and noise, so that nothing more is released: it is paid
        once. Anywhere else a round that runs again is paid again.
        """
        if self.ledger is None:
            return
        if self.simulated and any(c.part == arm and c.round == server_round for c in self.ledger.charges):
            return
        spent = self.ledger.charge(server_round, self.plan.noise_multiplier, arm)
        log.info("arm %s round %d: epsilon %.4g of %g is spent", arm, server_round, spent, self.ledger.budget.epsilon)

    def notes(self) -> list[str]:
        """What holds beside the assumptions of the accountant."""
        plan = self.plan
        notes = [
            f"covered are the shared tensors of all federated arms of this run together ({plan.rounds} rounds planned)"
        ]
        if self.simulated and plan.dp != NONE:
            notes.append(
                "SIMULATION: noise and sample are drawn from the run's seed so that the run is deterministic; who knows the seed "
                "can take it off"
            )
        weights = (
            "all devices weigh the same"
            if plan.cap is None
            else f"a device weighs min(examples, {plan.cap}) / {plan.cap}"
        )
        if plan.dp in (SERVER_NOISE, DISTRIBUTED_NOISE):
            notes.append(f"{weights}; the divisor of the mean is {plan.size}, whoever answers")
        if plan.quantile:
            notes.append(
                f"the clipping norm follows the {plan.quantile:g} quantile of the norms; what is told of it costs part of the noise: "
                f"the updates have multiplier {plan.update_multiplier:.4g}"
            )
        if plan.dp == LOCAL_NOISE:
            notes.append("each round counts as if every device had taken part in it: most took part in fewer")
        if plan.dp == SERVER_NOISE and (plan.secure or plan.edge):
            notes.append("devices clip their own updates and are trusted to: the aggregator sees only sums")
        if plan.dp == DISTRIBUTED_NOISE:
            notes.append(
                f"in each sum at most {plan.dropouts:g} of the participants drop out (else no sum is formed) and at most "
                f"{plan.colluding:g} of them tell the aggregator their noise; devices clip their own updates"
            )
        if plan.secure:
            share = f"{plan.threshold:g}" if plan.threshold else "more than two thirds"
            who = "nodes, each with the sum over its devices" if plan.edge else "devices"
            notes.append(
                f"sums are masked between {who}; {share} of them must stay, and the aggregator is trusted to pass on their keys"
            )
        if not make_codec(self.config.codec.name).lossless:
            notes.append(f"updates are compressed as {self.config.codec.name}; that costs and gains no privacy")
        return notes

    def statement(self) -> str:
        """What is printed with a result."""
        plan = self.plan
        if self.ledger is None or plan.scheme is None:
            lines = ["no noise: there is no epsilon, and a sum may still tell something of a person", *self.notes()]
            return "\n- ".join(lines)
        clipping = f"{plan.clipping}, norm {plan.bound:g}" + (" at first" if plan.quantile else "")
        return statement(
            plan.scheme,
            self.ledger.rounds(),
            self.ledger.budget.delta,
            clipping=clipping,
            trust=plan.dp,
            notes=self.notes(),
        )

    def summary(self) -> dict[str, Any]:
        """The content of ``privacy.json``."""
        plan, text = self.plan, self.statement()
        content: dict[str, Any] = {
            "dp": plan.dp,
            "secure_sum": self.config.privacy.secure_sum.mode,
            "aggregation": self.config.federation.aggregation,
            "population": plan.population,
            "devices_in_round": plan.size,
            "clipping": plan.clipping,
            "update_norm": plan.bound,
            "simulated": self.simulated,
            "statement": text,
            "assumptions": [line.removeprefix("- ") for line in text.splitlines()[1:]],
        }
        if self.ledger is not None and plan.scheme is not None:
            content |= {
                "epsilon": self.ledger.spent(),
                "delta": self.ledger.budget.delta,
                "epsilon_budget": self.ledger.budget.epsilon,
                "noise_multiplier": plan.noise_multiplier,
                "rounds_paid": len(self.ledger.charges),
                "rounds_planned": plan.rounds,
                "sampling": plan.scheme.sampling,
                "relation": plan.scheme.relation,
                "accountant": plan.scheme.accountant,
            }
        return content

    def write(self, folder: Path) -> None:
        """Write ``privacy.json`` and log the statement."""
        write_document(PrivacyRecord, folder / PRIVACY_NAME, self.summary())
        for line in self.statement().splitlines():
            log.info("privacy: %s", line)


def _require_means(ledger: Ledger, plan: PrivacyPlan) -> None:
    """Raise :class:`BudgetError` if a new ledger does not pay for a single round; warn if it does not for all of them."""
    budget, paid = ledger.budget, ledger.affordable(plan.noise_multiplier, plan.rounds)
    if not paid:
        raise BudgetError(
            f"epsilon-budget = {budget.epsilon:g} at delta {budget.delta:g} does not pay for a single round with noise-multiplier = "
            f"{plan.noise_multiplier:g}: give more noise, or set noise-multiplier = 0 to have it found"
        )
    if paid < plan.rounds:
        said = "epsilon-budget = %g pays for %d of %d rounds: the run will stop there"
        log.warning(said, budget.epsilon, paid, plan.rounds)
