"""What an aggregator that lies gets from deployed devices: crafted Flower messages to the app as it is, without training.

On the code before devices remembered anything, the ghost and the repetition gave one device's update to the rounding of the
grid, and sixty answers to one message averaged its local noise.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from clients.answers import DELTA
from clients.app import app
from clients.updates.reply import DeviceResult
from clients.worker import Worker
from fl.adapters.state import State
from fl.algorithms.plan import Phase
from fl.methods.recipes import fresh_state
from fl.privacy.accounting import ALL, REPLACE_ONE, Scheme, epsilon
from fl.privacy.secure_sum.device import SecureSumClient
from fl.privacy.secure_sum.keys import SecureSumError
from fl.privacy.secure_sum.messages import (
    AdvertiseKeys,
    CheckSurvivors,
    ConsistencyCheck,
    EndSession,
    MaskedInput,
    SecureSumSetup,
    ShareKeys,
    Survivors,
    Unmask,
)
from fl.privacy.secure_sum.server import SecureSumServer, new_setup
from fl.protocol.wire import (
    JOB,
    SECURE,
    SETTINGS_RECORD,
    SHARED,
    UPDATES,
    Job,
    device_key,
    settings_record,
    split_key,
    to_arrays,
)
from fl.settings.config import make_config
from fl.settings.names import NO_OP
from fl.tasks.table import load_task
from sim.backends.serial import SerialGrid
from strategies.app import run_server
from strategies.checkpoint import load_checkpoint

ARM, BOUND, SIZE = "personalized", 1.0, 33  # numbers of a vector: A, B and the weight
NAMES = tuple(f"device-{place:06d}" for place in range(4))
SECURE_STEP = f"{MessageType.QUERY}.secure_sum"


def step_of(device: str) -> float:
    """How far a device moves each number of its shared tensors."""
    return 0.01 * (1 + NAMES.index(device))


@pytest.fixture(autouse=True)
def training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each device takes a step that the test knows, the same one in every round."""

    def train(worker: Worker, job: Job, device_id: str, incoming: State) -> DeviceResult:
        moved = {name: tensor + np.float32(step_of(device_id)) for name, tensor in incoming.items()}
        numbers = {"examples": 1, "steps": 1, "loss": 0.5, "bytes-up": 1, "bytes-down": 1, "seconds-train": 0.0}
        return DeviceResult(device_id, numbers, shared=moved if job.phase is Phase.FEDERATE else {})

    monkeypatch.setattr("clients.app.train_device", train)


class Aggregator:
    """One that sends what it likes to four deployed devices, each with a node and a store of its own."""

    def __init__(self, root: Path, node: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        values = {
            "task": NO_OP,
            "devices": len(NAMES),
            "new_people": 0,
            "rank": 2,
            "gate": "self",
            "private_share": 0.0,
            "arms": ARM,
        }
        self.config = make_config({**values, **settings, "output": str(root / "run")})
        fresh = fresh_state(self.config, load_task(self.config), "none")
        self.shared: ArrayRecord = to_arrays({name: tensor * 0 for name, tensor in fresh.items()})
        self.grid = SerialGrid(app, nodes=len(NAMES))
        self.stores = {name: root / name for name in NAMES}
        self.refused: list[str] = []
        for name, context in zip(NAMES, self.grid._contexts.values(), strict=True):
            own = {key: value[name] if isinstance(value, dict) else value for key, value in node.items()}
            context.node_config = {"device-id": name, "store": str(self.stores[name]), "manifest": "run", **own}

    def new_run(self, run: int) -> None:
        """Everything from here on is of another Flower run."""
        for context in self.grid._contexts.values():
            context.run_id = run

    def ask(self, device: str, kind: str, records: Mapping[str, Any], job: Job) -> RecordDict:
        """A device's answer, empty where it refuses."""
        content = RecordDict({JOB: job.to_record(), SETTINGS_RECORD: settings_record(self.config), **records})
        message = Message(content, dst_node_id=1 + NAMES.index(device), message_type=kind)
        (reply,) = self.grid.send_and_receive([message])
        if reply.has_error():
            self.refused.append(str(reply.error.reason))
        return reply.content if reply.has_content() else RecordDict()

    def step(self, device: str, record: ConfigRecord) -> dict[str, Any] | None:
        """A device's answer to a step of a secure sum."""
        answer = self.ask(device, SECURE_STEP, {SECURE: record}, Job(ARM, 1, (device,)))
        return next((dict(r) for k, r in answer.config_records.items() if split_key(k)[0] == SECURE), None)

    def train(self, device: str, records: Mapping[str, Any] | None = None, **job: Any) -> RecordDict:
        """A device's answer to a training message."""
        asked = Job(ARM, **{"round": 1, "devices": (device,), "bound": BOUND, **job})
        return self.ask(device, MessageType.TRAIN, {SHARED: self.shared, **(records or {})}, asked)

    def sum(self, setup: SecureSumSetup, ghosts: Sequence[str] = (), **job: Any) -> np.ndarray:
        """A whole session with the devices of ``setup``, where ``ghosts`` are played here with zeros; their sum ``(size,)``."""
        server = SecureSumServer(setup)
        invented = {name: SecureSumClient(name, setup) for name in ghosts}
        real = [name for name in setup.devices if name not in ghosts]

        def collect(kind: type[Any], record: ConfigRecord) -> None:
            for name in real:
                if (answer := self.step(name, record)) is not None:
                    server.add(kind.from_record(answer))

        for ghost in invented.values():
            server.add(ghost.advertise())
        collect(AdvertiseKeys, setup.to_record())
        participants = server.participants()
        for ghost in invented.values():
            server.add(ghost.share(participants))
        collect(ShareKeys, participants.to_record())
        for ghost in invented.values():
            server.add(ghost.mask(server.inbox(ghost.device), np.zeros(setup.size)))
        for name in real:
            key = device_key(SECURE, name)
            answer = self.train(name, {key: server.inbox(name).to_record()}, **job)
            if key in answer:
                server.add(MaskedInput.from_record(answer.config_records[key]))
        if (check := server.check()) is not None:
            collect(ConsistencyCheck, check.to_record())
        survivors = server.survivors()
        for ghost in invented.values():
            server.add(ghost.reveal(survivors))
        collect(Unmask, survivors.to_record())
        return server.total()

    def secrets(self) -> list[Path]:
        """Files of sessions on the devices' disks."""
        return [path for store in self.stores.values() for path in store.rglob("secure-sums/*/*") if path.is_file()]


@pytest.fixture
def lying(tmp_path: Path) -> Callable[..., Aggregator]:
    """An aggregator; ``node`` is what each owner says (a dict has a value for each device), the rest are settings of the run."""

    def make(node: Mapping[str, Any] | None = None, **settings: Any) -> Aggregator:
        return Aggregator(tmp_path, node or {}, {"update_norm": BOUND, **settings})

    return make


PAIRWISE = {"secure_sum": "pairwise"}
NOISE = {"dp": "local", "noise_multiplier": 1.0}


def update_of(reply: RecordDict) -> np.ndarray | None:
    """The numbers of a plain update, if there is one."""
    arrays = reply.array_records.get(UPDATES)
    return None if arrays is None else np.concatenate([array.numpy().reshape(-1) for array in arrays.values()])


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """``key`` and ``peers`` of all devices' node-configs, as ssh-keygen and their owners make them."""
    folder = tmp_path_factory.mktemp("keys")
    made = {name: ec.generate_private_key(ec.SECP384R1()) for name in NAMES}
    for name, key in made.items():
        (folder / name).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    lines = [
        f"{name} {key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()} owner@home"
        for name, key in made.items()
    ]
    (folder / "peers").write_text("# from their owners\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return {"key": {name: str(folder / name) for name in NAMES}, "peers": dict.fromkeys(NAMES, str(folder / "peers"))}


# Ghosts


def test_a_ghost_beside_one_device_gets_nothing(lying: Callable[..., Aggregator]) -> None:
    """Before, the sum of the two was the device's update: the difference was 0."""
    liar = lying(**PAIRWISE)
    with pytest.raises(SecureSumError, match="1 of 2 devices sent AdvertiseKeys"):
        liar.sum(new_setup([NAMES[0], "ghost"], SIZE, BOUND, bits=64), ["ghost"])
    assert "this device asks for at least 3" in liar.refused[0]
    assert liar.secrets() == []


def test_two_ghosts_get_the_update_of_a_device_without_peers_and_nothing_of_one_with_them(
    lying: Callable[..., Aggregator], keys: dict[str, dict[str, str]]
) -> None:
    setup = new_setup([NAMES[0], "ghost 1", "ghost 2"], SIZE, BOUND, bits=64)
    total = lying(**PAIRWISE).sum(setup, setup.devices[1:])  # what docs/privacy.md says: it cannot know
    assert np.abs(total[:-1] - np.float32(step_of(NAMES[0]))).max() < 1e-14
    liar = lying(keys, **PAIRWISE)
    liar.new_run(2)
    with pytest.raises(SecureSumError, match="2 of 3 devices sent ShareKeys"):
        liar.sum(new_setup(setup.devices, SIZE, BOUND), setup.devices[1:])
    assert liar.secrets() == []


@pytest.mark.parametrize("least", [2, 3, 4])
def test_the_owner_says_how_many_must_be_in_a_sum(lying: Callable[..., Aggregator], least: int) -> None:
    liar = lying({"min-participants": least}, **PAIRWISE)
    setup = new_setup(NAMES, SIZE, BOUND, threshold=3)
    if least > 3:  # four are asked, and one of them may drop out
        with pytest.raises(SecureSumError, match="0 of 4 devices"):
            liar.sum(setup)
    else:
        assert liar.sum(setup)[:-1] == pytest.approx(sum(map(step_of, NAMES)), abs=1e-6)


# Repetitions


def test_a_round_is_answered_once_so_that_one_participant_fewer_shows_nothing(
    lying: Callable[..., Aggregator],
) -> None:
    """Before, the two sums differed by exactly the update of the one who was left out."""
    liar = lying(**PAIRWISE)
    four = liar.sum(new_setup(NAMES, SIZE, BOUND, bits=64))
    assert four[:-1] == pytest.approx(sum(map(step_of, NAMES)), abs=1e-6)
    with pytest.raises(SecureSumError, match="0 of 3 devices sent MaskedInput"):
        liar.sum(new_setup(NAMES[:3], SIZE, BOUND, bits=64))
    assert len(liar.refused) == 3
    assert all("answered round 1 of this arm in this run" in why for why in liar.refused)
    assert liar.secrets() == []


def test_sixty_repetitions_of_local_noise_are_one_answer(lying: Callable[..., Aggregator]) -> None:
    """Before, the mean of the sixty answers had an eighth of the noise."""
    liar = lying(**NOISE)
    found = [update_of(liar.train(NAMES[0], noise=1.0)) for _ in range(60)]
    assert [place for place, update in enumerate(found) if update is not None] == [0]


def test_another_run_or_round_is_answered_until_the_owners_rounds_are_spent(lying: Callable[..., Aggregator]) -> None:
    liar = lying({"max-rounds": 5}, **NOISE)
    answers = []
    for run in (1, 2, 3):
        liar.new_run(run)  # a resumed run is another one, and its rounds count again
        answers += [update_of(liar.train(NAMES[0], round=number, noise=1.0)) is not None for number in (1, 2)]
    assert answers == [True] * 5 + [False]
    assert "max-rounds = 5" in liar.refused[0]
    assert update_of(liar.train(NAMES[1], noise=1.0)) is not None  # it has a count of its own


def test_what_shares_no_update_is_not_counted(lying: Callable[..., Aggregator]) -> None:
    liar = lying({"max-rounds": 1})
    for _ in range(2):
        liar.train(NAMES[0], phase=Phase.PERSONALIZE)
        liar.ask(NAMES[0], MessageType.EVALUATE, {SHARED: liar.shared}, Job(ARM, 1, (NAMES[0],)))
    assert liar.refused == []
    assert update_of(liar.train(NAMES[0])) is not None


def test_a_simulation_answers_as_often_as_it_is_asked(lying: Callable[..., Aggregator]) -> None:
    liar = lying(**NOISE)
    for place, context in enumerate(liar.grid._contexts.values()):
        context.node_config = {"partition-id": place, "num-partitions": len(NAMES)}
    first, second = (update_of(liar.train(NAMES[0], noise=1.0)) for _ in range(2))
    assert first is not None
    assert np.array_equal(first, second)
    assert not list(Path(liar.config.output).rglob("answers"))


# The budget of a device


def cost(multiplier: float, rounds: int) -> float:
    return epsilon(Scheme(1, 1, ALL, REPLACE_ONE), {multiplier: rounds}, DELTA)


def test_a_device_counts_the_noise_that_it_adds_itself(lying: Callable[..., Aggregator]) -> None:
    liar = lying({"max-epsilon": cost(4.0, 2) + 0.01}, dp="local", noise_multiplier=4.0)
    assert update_of(liar.train(NAMES[0], noise=1.0)) is None  # more than two rounds of a multiplier of 4
    found = [update_of(liar.train(NAMES[0], round=number, noise=4.0)) is not None for number in (1, 2, 3)]
    assert found == [True, True, False]
    assert update_of(liar.train(NAMES[1], noise=4.0, bound=4.0)) is None  # as much noise, on four times the update
    assert all("max-epsilon" in why for why in liar.refused)


def test_without_noise_of_its_own_a_device_with_a_budget_gives_nothing(lying: Callable[..., Aggregator]) -> None:
    liar = lying({"max-epsilon": 1000.0})
    assert update_of(liar.train(NAMES[0], noise=100.0)) is None  # noise of any size says nothing of what is not clipped
    assert "epsilon = inf" in liar.refused[0]


def test_of_distributed_noise_a_device_counts_its_own_share(lying: Callable[..., Aggregator]) -> None:
    share = 8.0 / math.sqrt(4)  # of each of four devices
    setup = new_setup(NAMES, SIZE, BOUND, bits=64, noise=8.0)
    settings = {**PAIRWISE, "dp": "distributed", "noise_multiplier": 8.0}
    with pytest.raises(SecureSumError, match="0 of 4 devices sent MaskedInput"):
        lying({"max-epsilon": cost(share, 1) - 0.01}, **settings).sum(setup)
    assert lying({"max-epsilon": cost(share, 1) + 0.01}, **settings).sum(setup).std() > 2.0


@pytest.mark.parametrize("damage", [b"", b"[]", b"0" * 64 + b"\n[]"])
def test_a_damaged_count_is_not_one_of_zero(lying: Callable[..., Aggregator], damage: bytes) -> None:
    liar = lying({"max-rounds": 5})
    assert update_of(liar.train(NAMES[0])) is not None
    (path,) = liar.stores[NAMES[0]].glob("answers/*.json")
    sound = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    for broken in (damage, sound[:-2], sound.replace(b'"round":1', b'"round":2')):
        path.write_bytes(broken)
        assert update_of(liar.train(NAMES[0], round=2)) is None
    assert liar.refused == ["RunError: StoreError on the device, whose log says more"] * 3
    path.write_bytes(sound)
    assert update_of(liar.train(NAMES[0], round=2)) is not None


# Signed keys, and one list of survivors for all


def test_devices_that_know_each_other_sum_and_leave_no_seed(
    tmp_path: Path, keys: dict[str, dict[str, str]], lying: Callable[..., Aggregator]
) -> None:
    for node in ({}, keys, {"key": keys["key"]}):
        liar = lying(node, **PAIRWISE, rounds=1, evaluate_every=0, seed=len(node))
        config = liar.config.changed({"output": str(tmp_path / f"run{len(node)}")})
        folder = run_server(liar.grid, config, 1)
        checkpoint = load_checkpoint(folder / "checkpoints", ARM, load_task(config).fingerprint)
        assert checkpoint is not None
        start = fresh_state(config, load_task(config), "none")
        moved = [array.numpy() - start[name].numpy() for name, array in checkpoint.arrays.items()]
        assert all(m == pytest.approx(np.mean([step_of(n) for n in NAMES]), abs=1e-6) for m in moved)
        assert liar.secrets() == []


def test_a_key_that_another_one_signed_ends_the_session(
    lying: Callable[..., Aggregator], keys: dict[str, dict[str, str]]
) -> None:
    other = {"key": {**keys["key"], NAMES[3]: keys["key"][NAMES[2]]}, "peers": keys["peers"]}
    with pytest.raises(SecureSumError, match="1 of 4 devices sent ShareKeys"):
        lying(other, **PAIRWISE).sum(new_setup(NAMES, SIZE, BOUND))


@pytest.mark.parametrize("peers", ["none", "checked", "unchecked"])
def test_devices_that_are_shown_different_survivors_reveal_nothing(
    lying: Callable[..., Aggregator], keys: dict[str, dict[str, str]], peers: str
) -> None:
    """Without peers they still reveal: some a share of one device's self-mask, others one of its key, though too few of each."""
    liar = lying({} if peers == "none" else keys, **PAIRWISE)
    setup = new_setup(NAMES, SIZE, BOUND, threshold=3)
    server = SecureSumServer(setup)
    for name in NAMES:
        server.add(AdvertiseKeys.from_record(liar.step(name, setup.to_record()) or {}))
    for name in NAMES:
        server.add(ShareKeys.from_record(liar.step(name, server.participants().to_record()) or {}))
    for name in NAMES:
        key = device_key(SECURE, name)
        liar.train(name, {key: server.inbox(name).to_record()})
    shown = {
        name: NAMES if name in NAMES[:2] else NAMES[1:] for name in NAMES
    }  # the last two believe the first is gone
    signatures = {}
    for name in NAMES[:3] if peers == "checked" else ():
        answer = liar.step(name, CheckSurvivors(setup.session, shown[name]).to_record())
        signatures[name] = ConsistencyCheck.from_record(answer or {}).signature
    for name in NAMES[1:]:
        answer = liar.step(name, Survivors(setup.session, shown[name], signatures).to_record())
        assert (answer is None) == (peers != "none")
    assert len(liar.secrets()) == 1  # of the one that was not asked again
    liar.step(NAMES[0], EndSession(setup.session).to_record())
    assert liar.secrets() == []
