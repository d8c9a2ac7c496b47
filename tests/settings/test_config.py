"""Settings: one name everywhere, checked before anything is computed."""

import math
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.adapters.gates.table import GATES
from fl.algorithms.arms import adapter_name, evaluated_as, trained_arm
from fl.algorithms.table import choosable
from fl.core.errors import ConfigError
from fl.settings import config as config_module
from fl.settings.config import SETTINGS, RunConfig, dump_config, find_key, flat, load_config, make_config
from fl.settings.fields import LARGEST
from fl.settings.names import ARMS, SITES, SPLITS
from sim.cli.generate import PAGE, PROJECT, new_page, new_project

ROOT = Path(__file__).parents[2]
NUMBERS = [row for row in SETTINGS.values() if row.type in (int, float)]
WORDS = [row for row in SETTINGS.values() if row.words]
ONE_KEY = ("is unknown", "out of range", "is a ", "unknown setting")  # what a value is refused for by itself


def by_key(row):
    return row.key


def values_of(row):
    """Any value that a setting takes."""
    low, high = row.bound("ge"), row.bound("le")
    if row.key == "algorithm.name":
        return st.sampled_from(choosable())
    if row.words:
        known = list(row.words.known())
        several = st.lists(st.sampled_from(known), min_size=1, unique=True).map(",".join)
        return several if row.words.several else st.sampled_from(known)
    if row.type is bool:
        return st.booleans()
    if row.type is int:
        return st.integers(int(low), int(min(high, 10**9)))
    if row.key == "federation.sample":
        return st.floats(low, 1.0) | st.integers(2, int(high)).map(float)
    if row.type is float:
        return st.floats(low, high if high is not None else 1e9)
    special = {
        "adapter.split": st.sampled_from([*SPLITS, r"layers:decoder\.layers\.[23]"]),
        "adapter.device-ranks": st.sampled_from(["", "1", "1, 1"]),
        "codec.name": st.sampled_from(["fp32", "fp16", "int8", "top-k:0.1", "int4:0.5"]),
    }
    # TOML knows no lone surrogates, and no other control characters than it can escape.
    return special.get(row.key, st.text(st.characters(codec="utf-8"), max_size=12))


some_values = st.lists(st.sampled_from(sorted(SETTINGS)), max_size=8, unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({key: values_of(SETTINGS[key]) for key in keys})
)


def allowed(values):
    """The configuration of ``values``, or None where they do not go together."""
    try:
        return make_config(values)
    except ConfigError as error:
        if any(part in str(error).split(":")[0] for part in ONE_KEY):
            raise
        return None


@given(some_values)
def test_a_configuration_survives_being_flattened(values):
    config = allowed(values)
    if config is not None:
        assert make_config(flat(config)) == config
        assert all(flat(config)[key] == value for key, value in values.items())


@given(some_values)
def test_a_configuration_survives_being_written_to_a_file(tmp_path_factory, values):
    config = allowed(values)
    if config is not None:
        path = tmp_path_factory.mktemp("config") / "config.toml"
        path.write_text(dump_config(config), encoding="utf-8")
        assert load_config(path) == config


def test_a_whole_number_is_a_number_and_a_text_is_none():
    assert make_config({"learning-rate": 1}).train.learning_rate == 1.0
    with pytest.raises(ConfigError, match=r"adapter\.rank = '4' is a str: a whole number"):
        make_config({"rank": "4"})


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("local_steps", "train.local-steps"),
        ("local-steps", "train.local-steps"),
        ("ditto.pull", "algorithm.ditto.pull"),
        ("algorithm", "algorithm.name"),
        ("dp", "privacy.dp.mode"),
        ("seed", "seed"),
        ("data.seed", "data.seed"),
    ],
)
def test_a_key_may_be_shortened_where_that_is_unique(short, full):
    assert find_key(short) == full


def test_a_short_key_of_several_settings_lists_them():
    with pytest.raises(ConfigError, match=r"one of several: write algorithm\.ditto\.pull or algorithm\.pfedme\.pull"):
        make_config({"pull": 0.5})


def test_every_setting_explains_itself_and_its_default_is_allowed():
    for row in SETTINGS.values():
        assert len(row.help) > 10, row.key
        assert row.allowed
        assert type(row.default) is row.type, row.key


def test_the_flower_app_section_offers_exactly_these_settings_with_values_that_are_allowed():
    section = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    given = flat(make_config(config_module.flattened(section)))
    assert config_module.flattened(section) == given, "Flower overrides only keys that stand there"
    changed = {key for key, value in given.items() if value != SETTINGS[key].default}
    assert changed == {"federation.arms", "federation.rounds", "federation.evaluate-every"}


def test_the_page_and_the_flower_section_are_as_they_are_generated():
    for path, renew in ((PAGE, new_page), (PROJECT, new_project)):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert renew(text) == text, "run python -m sim.cli.generate"
        changed = text.replace("finetune-steps", "finetune-step")
        assert changed != text
        assert renew(changed) == text


@pytest.mark.parametrize(
    ("key", "meant"),
    [("learning-rat", "train.learning-rate"), ("local_step", "train.local-steps"), ("Rank", "adapter.rank")],
)
def test_an_unknown_key_suggests_the_nearest(key, meant):
    with pytest.raises(ConfigError, match=f"unknown setting '{key}': did you mean '{meant}'"):
        make_config({key: 1})


def test_a_key_like_no_other_lists_all_of_them():
    with pytest.raises(ConfigError) as error:
        make_config({"xyzzy": 1})
    assert "did you mean" not in str(error.value)
    assert all(row.key in str(error.value) for row in SETTINGS.values())


@pytest.mark.parametrize("row", NUMBERS, ids=by_key)
@pytest.mark.parametrize("value", ["", "many", None, [1], True, "nan", "inf", float("inf"), float("nan"), 10**400])
def test_a_number_is_a_finite_number(row, value):
    with pytest.raises(ConfigError, match=row.key):
        make_config({row.key: value})


@pytest.mark.parametrize("row", [row for row in NUMBERS if row.type is int], ids=by_key)
@pytest.mark.parametrize("value", [2.0, 2.5, "2.5"])
def test_a_whole_number_is_not_rounded(row, value):
    with pytest.raises(ConfigError, match=f"{row.key}.*a whole number"):
        make_config({row.key: value})


@pytest.mark.parametrize("row", NUMBERS, ids=by_key)
def test_a_number_out_of_range_is_refused_with_the_range(row):
    low, high = row.bound("ge"), row.bound("le")
    beyond = {} if low is None else {low - 1: low}
    beyond |= {} if high in (None, LARGEST) else {high + 1: high}
    assert beyond
    for value, bound in beyond.items():
        with pytest.raises(ConfigError, match="out of range") as error:
            make_config({row.key: row.type(value)})
        assert row.key in str(error.value)
        assert f"{bound:g}" in str(error.value)


@pytest.mark.parametrize("row", NUMBERS, ids=by_key)
def test_the_bounds_themselves_are_allowed(row):
    for bound in (row.bound("ge"), row.bound("le")):
        if bound is not None:
            config = allowed({row.key: row.type(bound)})
            assert config is None or flat(config)[row.key] == bound


@pytest.mark.parametrize("row", WORDS, ids=by_key)
@pytest.mark.parametrize("value", ["nonsense", "", 3, ["trimmed"]])
def test_an_unknown_word_is_refused_by_naming_the_known_ones(row, value):
    with pytest.raises(ConfigError) as error:
        make_config({row.key: value})
    assert row.key in str(error.value)
    assert all(word in str(error.value) for word in row.words.known())


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"algorithm": "gates", "split": "gates"}, ["gate = 'none'", "split = 'gates'"]),
        ({"method": "prefix"}, ["method = 'prefix'", "split = 'gates'"]),
        ({"device-ranks": "2,9"}, ["device-ranks = '2,9'", "rank = 8", "whole numbers from 1 to 8"]),
        ({"device-ranks": "0"}, ["device-ranks = '0'", "from 1 to 8"]),
        ({"device-ranks": "2;4"}, ["device-ranks = '2;4'", "with commas"]),
        ({"device-ranks": " ,"}, ["device-ranks = ' ,'", "with commas"]),
        ({"device-ranks": "2", "method": "bottleneck", "arms": "global"}, ["device-ranks", "method = 'bottleneck'"]),
        ({"device-ranks": "2", "parameter-budget": 100}, ["device-ranks", "set parameter-budget = 0"]),
        ({"device-ranks": "2", "algorithm": "krum"}, ["device-ranks", "algorithm = 'krum'", "flexlora"]),
        ({"device-ranks": "2", "algorithm": "ditto"}, ["device-ranks", "algorithm = 'ditto'", "leave it out"]),
        ({"device-ranks": "2", "split": "fedsa"}, ["device-ranks", "split = 'fedsa'", "split = 'gates'"]),
        ({"device-ranks": "2", "gate": "self", "split": "all-shared"}, ["device-ranks", "'self'", "gate = 'none'"]),
        ({"device-ranks": "2", "gate": "self", "gated-arms": "all"}, ["device-ranks", "gated-arms = 'personalized'"]),
        ({"algorithm": "enrolment", "enrolment-part": "C"}, ["enrolment-part", "'C'", "A, B, gate"]),
        ({"algorithm": "enrolment", "enrolment-part": "gate"}, ["enrolment-part", "no gates", "A,B"]),
        ({"arms": "neutral"}, ["'neutral'", "'personalized'"]),
        ({"arms": "global+finetune,personalized"}, ["'global+finetune'", "'global'"]),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_naming_both(values, named):
    with pytest.raises(ConfigError) as error:
        make_config(values)
    assert all(part in str(error.value) for part in named)


@pytest.mark.parametrize("sample", [1e-9, 0.3, 1.0, 2.0, 1000, 1e6])
def test_a_sample_is_a_share_up_to_one_and_a_number_of_devices_above(sample):
    assert make_config({"sample": sample}).federation.sample == float(sample)


@pytest.mark.parametrize("sample", [2.5, 1.0001])
def test_a_sample_between_a_share_and_a_number_is_refused(sample):
    with pytest.raises(
        ConfigError, match=r"sample = .* neither a share nor a number of devices.*a whole number above 1"
    ):
        make_config({"sample": sample})


def test_a_contradiction_is_found_against_what_was_set_before():
    start = make_config({"arms": "global", "method": "prefix"})
    with pytest.raises(ConfigError, match="nothing private"):
        make_config({"arms": "personalized"}, start)
    assert make_config({"rank": 2}, start).adapter.method == "prefix"


@pytest.mark.parametrize("split", ["private", "Gates", "", "layers"])
def test_an_unknown_split_is_refused_by_naming_the_known_ones(split):
    with pytest.raises(ConfigError, match="unknown") as error:
        make_config({"split": split})
    assert all(name in str(error.value) for name in (*SPLITS, "layers:"))


def test_a_split_by_a_pattern_that_is_none_is_refused_before_the_run():
    with pytest.raises(ConfigError, match=r"layers:\[.*not a regular expression"):
        make_config({"split": "layers:["})


def test_a_changed_copy_leaves_the_start_alone():
    start = RunConfig()
    assert make_config({"rank": 2}, start).adapter.rank == 2
    assert start == RunConfig()


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[train\n", "is not TOML"),
        ("[traning]\nlocal-steps = 2\n", "did you mean 'train.local-steps'"),
        ("[train]\nrank = 2\n", "unknown setting 'train.rank'"),
        ("[train]\nlearning-rate = 0.1\nlearning_rate = 0.2\n", "given twice"),
        ("rank = 2\n[adapter]\nrank = 4\n", "given twice"),
        ("[federation]\nrounds = 'many'\n", "a whole number"),
        ("[train]\nlearning_rate = inf\n", "finite"),
        ("[adapter]\nrank = 2000\n", "out of range"),
        ("[adapter]\nrank = [8]\n", "rank"),
    ],
)
def test_a_file_with_a_mistake_is_refused_by_naming_the_file_and_the_place(toml, text, named):
    path = toml(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(path) in str(error.value)
    assert named in str(error.value)


def test_a_file_may_use_hyphens_and_leave_out_what_stays(toml):
    config = load_config(toml("seed = 4\n[train]\nlearning-rate = 0.25\nlocal_steps = 7\n"))
    assert config == make_config({"seed": 4, "learning-rate": 0.25, "local-steps": 7})


def test_a_missing_file_and_a_binary_one_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="give an existing TOML file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(tmp_path / "binary.toml")


def test_arms_come_in_canonical_order_whatever_the_order_they_are_named_in():
    assert make_config({"arms": "personalized, global ,local"}).arms == ("local", "global", "personalized")
    assert RunConfig().arms == ARMS


def test_every_arm_is_trained_or_only_evaluated():
    config = make_config({"gate": "cross", "split": "fedsa"})
    trained = {name for name in ARMS if trained_arm(name, config) is not None}
    assert set(ARMS) - trained == {"zero-shot", "neutral"}
    arm = trained_arm("personalized", config)
    assert arm is not None
    assert (arm.gate, arm.split) == ("cross", "fedsa")
    assert evaluated_as("neutral", config) == (arm, True)
    assert evaluated_as("personalized", config) == (arm, False)
    assert evaluated_as("zero-shot", config) == (None, False)
    for name in trained - {"personalized"}:
        assert trained_arm(name, config).gate == "none"


def test_a_fine_tuned_arm_starts_from_one_that_must_be_there():
    for name in ARMS:
        arm = trained_arm(name, RunConfig())
        if arm is not None and arm.starts_from:
            with pytest.raises(ConfigError, match=arm.starts_from):
                make_config({"arms": name})


def test_adapter_slots_have_names_that_no_module_has():
    names = [adapter_name(gate) for gate in GATES]
    assert len(set(names)) == len(GATES)
    assert all("-" in name and not name.isidentifier() and "." not in name for name in names)


def test_the_population_has_its_own_seed_or_that_of_the_run():
    assert make_config({"seed": 5}).data_seed == 5
    assert make_config({"seed": 5, "data.seed": 3}).data_seed == 3


def test_defaults_are_whole():
    config = RunConfig()
    assert config.sites
    assert set(config.sites) <= set(SITES)
    assert all(not isinstance(v, float) or math.isfinite(v) for v in flat(config).values())


def test_settings_are_read_without_torch():
    blocked = "import sys\nfor name in ('torch', 'peft', 'transformers', 'flwr'):\n    sys.modules[name] = None\n"
    code = (
        blocked
        + "import fl.settings.config, fl.core.errors, fl.core.rng, fl.core.files, fl.algorithms.arms\n"
        + "print(len(fl.settings.config.SETTINGS))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.split() == [str(len(config_module.SETTINGS))], result.stderr
