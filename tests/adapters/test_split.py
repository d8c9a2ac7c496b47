"""Every tensor of an adapter is shared, private or fixed: exactly one of them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.gates.table import GATES
from fl.adapters.layer import fresh_adapter
from fl.adapters.split import PRESETS, Split, covering, in_part, make_split, role_of, tensor_kind
from fl.core.errors import ConfigError, SplitError
from fl.settings.names import SITES, SPLITS

MODULES = [f"base_model.model.model.{half}.layers.{i}.self_attn.{p}"
           for half in ("encoder", "decoder") for i in range(3) for p in ("q_proj", "out_proj")]  # fmt: skip
KINDS = ("A", "B", "gate_weight", "gate_bias")
NAMES = [f"{module}.gated_lora_{kind}" for module in MODULES for kind in KINDS]


def roles(split: Split) -> dict[str, str]:
    """Role by name; fails if a name has two."""
    table: dict[str, str] = {}
    for role in ("shared", "private", "fixed"):
        for name in getattr(split, role):
            assert name not in table
            table[name] = role
    return table


@pytest.mark.parametrize(
    ("preset", "a", "b", "gate"),
    [
        ("gates", "shared", "shared", "private"),
        ("fedsa", "shared", "private", "private"),
        ("ffa", "fixed", "shared", "private"),
        ("all-shared", "shared", "shared", "shared"),
        ("all-private", "private", "private", "private"),
    ],
)
def test_a_preset_gives_each_kind_of_tensor_its_role(preset, a, b, gate):
    expected = {"A": a, "B": b, "gate_weight": gate, "gate_bias": gate}
    table = roles(make_split(preset, NAMES))
    assert table == {name: expected[name.rsplit("gated_lora_", 1)[1]] for name in NAMES}


@pytest.mark.parametrize("preset", SPLITS)
@pytest.mark.parametrize("gate", GATES)
def test_presets_are_disjoint_and_complete_over_real_adapters(preset, gate, whisper):
    names = fresh_adapter(whisper(), GatedLoraConfig(r=2, gate=gate, target_modules=target_pattern(SITES))).keys()
    split = make_split(preset, names)
    assert set(roles(split)) == set(names)
    assert set(split.trained) == set(names) - set(split.fixed)


def test_no_preset_but_the_one_named_so_shares_a_gate():
    for preset in SPLITS:
        shared_gates = [name for name in make_split(preset, NAMES).shared if tensor_kind(name) == "gate"]
        assert bool(shared_gates) == (preset == "all-shared")


def test_the_run_config_knows_the_same_presets():
    assert tuple(PRESETS) == SPLITS


# No repetition signs: a pattern may take a regular expression for ever, which is not what is tested here.
patterns = st.text("adelyrs.0123|\\d()[]^$?_BA", max_size=12) | st.sampled_from(
    ["", r"layers\.2\.", r"decoder.*gate", "encoder", r"q_proj\.gated_lora_B$", "(", "[a"]
)


@given(pattern=patterns, chosen=st.sets(st.sampled_from(NAMES)))
def test_any_pattern_gives_a_complete_split_or_a_typed_error(pattern, chosen):
    try:
        compiled = re.compile(pattern)
        matched = {name for name in chosen if compiled.search(name)}
    except re.error:
        matched = None
    if matched is None:
        with pytest.raises(ConfigError, match="regular expression"):
            make_split(f"layers:{pattern}", chosen)
    elif not matched:
        with pytest.raises(SplitError, match="matches no tensor"):
            make_split(f"layers:{pattern}", chosen)
    else:
        split = make_split(f"layers:{pattern}", chosen)
        assert set(split.private) == matched
        assert set(roles(split)) == chosen


@given(preset=st.sampled_from(SPLITS) | patterns.map("layers:{}".format))
def test_the_role_of_one_name_agrees_with_the_split_of_all(preset):
    try:
        table = roles(make_split(preset, NAMES))
    except ConfigError:
        with pytest.raises(ConfigError):
            role_of(preset, NAMES[0])
    except SplitError:  # a pattern that matches nothing keeps nothing private
        assert {role_of(preset, name) for name in NAMES} == {"shared"}
    else:
        assert {name: role_of(preset, name) for name in NAMES} == table


@pytest.mark.parametrize("preset", ["gate", "", "Gates", "layers"])
def test_an_unknown_preset_is_refused_by_naming_the_known_ones(preset):
    for build in (lambda: make_split(preset, NAMES), lambda: role_of(preset, NAMES[0])):
        with pytest.raises(ConfigError, match="unknown split") as error:
            build()
        assert all(name in str(error.value) for name in (*SPLITS, "layers:<pattern>"))


def test_a_tensor_of_an_unknown_kind_has_no_role():
    with pytest.raises(SplitError, match="unknown kind 'magnitude'"):
        make_split("gates", [*NAMES, f"{MODULES[0]}.gated_lora_magnitude"])


def test_a_split_with_two_roles_for_one_tensor_cannot_be_built():
    with pytest.raises(SplitError, match=r"two roles to x\.A"):
        Split("mine", shared=("x.A", "x.B"), private=("x.A",))
    with pytest.raises(SplitError, match="two roles"):
        Split("mine", shared=("x.A",), private=(), fixed=("x.A",))


@pytest.mark.parametrize(
    ("part", "kinds", "half"),
    [
        ("all", KINDS, ""),
        ("B", ["B"], ""),
        ("A, B@decoder", ["A", "B"], ".decoder."),
        ("gate", ["gate_weight", "gate_bias"], ""),
        ("gate_bias@encoder", ["gate_bias"], ".encoder."),
        ("all@decoder", KINDS, ".decoder."),
    ],
)
def test_a_part_is_a_choice_of_kinds_and_of_modules(part, kinds, half):
    wanted = [n for n in NAMES if n.rpartition("lora_")[2] in kinds and half in n]
    assert list(filter(in_part(part), NAMES)) == wanted != []


def test_the_encoder_alone_is_named_by_its_place_since_cross_attention_is_called_encoder_attn(whisper):
    config = GatedLoraConfig(r=2, gate="none", target_modules=target_pattern(SITES))
    names = sorted(n for n in fresh_adapter(whisper(), config) if n.endswith("_B"))
    encoder, cross = ([n for n in names if where in n] for where in ("model.encoder.layers.", ".encoder_attn."))
    assert min(len(encoder), len(cross)) > 0
    assert list(filter(in_part("B@model.encoder"), names)) == encoder
    assert sorted(filter(in_part("B@encoder"), names)) == sorted(encoder + cross)


@pytest.mark.parametrize(("part", "at"), [("C", "'C'"), ("B,", "''"), ("B@(", r"'\(' is not a regular expression")])
def test_a_part_that_cannot_be_says_what_is_allowed(part, at):
    with pytest.raises(ConfigError, match=f"part .*{at}"):
        in_part(part)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.q_proj.gated_lora_A", "A"),
        ("x.q_proj.gated_lora_B", "B"),
        ("x.q_proj.gated_lora_gate_weight", "gate"),
        ("x.q_proj.gated_lora_gate_bias", "gate"),
        ("A", "A"),
        ("x.weight", "weight"),
    ],
)
def test_a_tensor_tells_its_kind_by_its_last_name(name, kind):
    assert tensor_kind(name) == kind


@pytest.mark.parametrize(
    ("preset", "private", "expected"),
    [
        ("gates", (), "gates"),
        ("all-shared", ("gate_weight",), "gates"),
        ("gates", ("B",), "fedsa"),
        ("all-shared", ("A", "B"), "all-private"),
        ("all-private", ("B",), "all-private"),
    ],
)
def test_what_has_become_private_is_private_in_the_narrowest_preset_that_keeps_it(preset, private, expected):
    names = [name for name in NAMES if name.rsplit("gated_lora_", 1)[1] in private]
    assert covering(preset, NAMES, names) == expected
    assert set(names) <= set(make_split(expected, NAMES).private)
