"""The adapter that decodes for one person: the sum that its formula says, and the shared one where nothing is personal yet."""

import pytest
import torch

from fl.adapters.blend import MIXING, own, require_room
from fl.adapters.config import GatedLoraConfig
from fl.adapters.layer import GatedLoraLinear
from fl.adapters.split import layers, make_split, role_of
from fl.adapters.state import size_of
from fl.algorithms.personal.own_adapter import OwnAdapter
from fl.algorithms.table import make_algorithm
from fl.core.errors import ConfigError
from fl.settings.config import RunConfig

D_IN, D_OUT, RANK, ALPHA = 6, 5, 2, 4.0
A, B, G, C = (f"base_model.model.map.gated_lora_{what}" for what in ("A", "B", "gate_weight", "gate_bias"))
METHODS = ("ditto", "pfedme", "mixture", "dual-adapter", "interpolation")


def make_blend(method: str) -> OwnAdapter:
    second = make_algorithm(RunConfig(), method).second
    assert second is not None
    return second


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def shared() -> dict[str, torch.Tensor]:
    return {A: random(RANK, D_IN, seed=1), B: random(D_OUT, RANK, seed=2)}


def decoded(method: str, shared: dict[str, torch.Tensor], personal: dict[str, torch.Tensor], x: torch.Tensor):
    """What the ordinary layer adds to the frozen map for ``x`` (3, d_in)."""
    blend = make_blend(method)
    config = GatedLoraConfig(r=blend.ranks * RANK, lora_alpha=blend.ranks * ALPHA, gate=blend.gate, init_seed=1)
    base = torch.nn.Linear(D_IN, D_OUT)
    layer = GatedLoraLinear(base, "default", config, "map")
    for name, tensor in blend.build(shared, personal).items():
        parameter = getattr(layer, name.rpartition(".")[2])["default"]
        assert parameter.shape == tensor.shape
        parameter.data = tensor
    return layer(x) - base(x)


def update(state: dict[str, torch.Tensor], x: torch.Tensor, of=lambda name: name) -> torch.Tensor:
    return ALPHA / RANK * x @ state[of(A)].T @ state[of(B)].T


@pytest.mark.parametrize("method", METHODS)
def test_before_anything_is_learnt_a_person_decodes_with_the_shared_adapter(method, shared):
    x = random(3, D_IN, seed=3)
    personal = make_blend(method).start(shared, 5)
    assert torch.allclose(decoded(method, shared, personal, x), update(shared, x), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_adapter_that_decodes_is_the_sum_of_the_formula(method, shared):
    x = random(3, D_IN, seed=3)
    personal = {n: random(*t.shape, seed=i) for i, (n, t) in enumerate(make_blend(method).start(shared, 5).items())}
    if MIXING in personal:
        personal[MIXING] = torch.tensor(0.3)
    ours, theirs = update(personal, x, own), update(shared, x)
    if method == "mixture":
        expected = 0.3 * ours + 0.7 * theirs
    elif method == "interpolation":
        weight = torch.sigmoid(x @ personal[own(G)] + personal[own(C)])[:, None]
        expected = weight * ours + (1 - weight) * theirs
    elif method == "dual-adapter":
        gate = 2 * torch.sigmoid(x @ personal[own(G)].T + personal[own(C)])
        z = torch.cat((x @ shared[A].T, x @ personal[own(A)].T), dim=1) * gate
        expected = ALPHA / RANK * (z[:, :RANK] @ shared[B].T + z[:, RANK:] @ personal[own(B)].T)
    else:
        expected = ours
    assert torch.allclose(decoded(method, shared, personal, x), expected, atol=1e-4)


def test_a_device_keeps_as_many_bytes_as_its_own_tensors_have(shared):
    factors = 4 * (RANK * D_IN + D_OUT * RANK)
    wanted = {
        "ditto": factors,
        "pfedme": factors,
        "mixture": factors + 4,
        "dual-adapter": factors + 4 * (2 * RANK * D_IN + 2 * RANK),
        "interpolation": factors + 4 * (D_IN + 1),
    }
    assert {method: size_of(make_blend(method).start(shared, 0)).bytes for method in METHODS} == wanted
    assert all(make_algorithm(RunConfig(), name).second is None for name in ("gates", "fedper", "clusters"))


def test_what_a_person_has_beside_the_adapter_is_private_in_every_split(shared):
    for name in make_blend("dual-adapter").start(shared, 0):
        assert all(role_of(split, name) == "private" for split in ("all-shared", "gates", "ffa", "layers:x"))
    assert role_of("all-shared", A) == role_of("all-shared", f"control:{A}") == "shared"
    assert role_of("gates", f"control:{G}") == "private"


def test_a_map_without_room_for_twice_the_rank_is_refused(shared):
    require_room("mixture", 2, shared)
    wide = {A: torch.zeros(3, D_IN), B: torch.zeros(D_OUT, 3)}
    require_room("ditto", 1, wide)
    with pytest.raises(ConfigError, match="rank to at most 2"):
        require_room("mixture", 2, wide)


NAMES = [
    f"base_model.model.model.{stack}.layers.{i}.self_attn.q_proj.gated_lora_{what}"
    for stack in ("decoder", "encoder")
    for i in (0, 2, 10)
    for what in "AB"
]


def test_the_last_layers_are_those_of_the_decoder():
    found = layers(NAMES)
    assert [names[0].split(".self_attn")[0].removeprefix("base_model.model.model.") for names in found] == [
        f"{stack}.layers.{i}" for stack in ("encoder", "decoder") for i in (0, 2, 10)
    ]
    split = make_split("last:2", NAMES)
    assert split.private == tuple(n for n in sorted(NAMES) if "decoder.layers.2." in n or "decoder.layers.10." in n)
    assert {*split.private, *split.shared} == set(NAMES)


@pytest.mark.parametrize("preset", ["last:6", "last:0", "last:", "last:x", "last:-1"])
def test_a_number_of_layers_that_leaves_nothing_to_one_side_is_refused(preset):
    with pytest.raises(ConfigError, match="from 1 to 5"):
        make_split(preset, NAMES)
