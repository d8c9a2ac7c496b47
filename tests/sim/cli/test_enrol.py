"""``idiolect enrol``: from a folder of recordings and a shared adapter to a personal one, kept only where it helps."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fl.adapters.config import GatedLoraConfig, target_pattern
from fl.adapters.files import AdapterInfo, load_adapter, save_adapter
from fl.adapters.layer import fresh_adapter
from fl.bases.resolve import load_speech_base
from fl.core.errors import AdapterMismatchError, ConfigError, ManifestError
from fl.data.manifest import read_manifest
from fl.settings.names import SITES
from fl.speech.spelling import SpellingTable
from sim.cli.enrol_options import enrol
from sim.cli.help import new_app

app = new_app()
app.command()(enrol)


@pytest.fixture(scope="module")
def shared(own_home, tmp_path_factory) -> Path:
    """A shared adapter with the gates of somebody else."""
    base = load_speech_base("random:whisper-nano")
    config = GatedLoraConfig(r=2, lora_alpha=4.0, gate="self", target_modules=target_pattern(SITES), init_seed=1)
    state = fresh_adapter(base.model, config)
    tensors = {name: tensor + 0.3 if "lora_gate" in name else tensor for name, tensor in state.items()}
    info = AdapterInfo(base.name, base.fingerprint, "gates", config, language="ko")
    save_adapter(folder := tmp_path_factory.mktemp("shared") / "adapter", tensors, info)
    return folder


@pytest.fixture(scope="module")
def recordings(noise_manifest, tmp_path_factory) -> Path:
    """A folder of four recordings, each with its text beside it."""
    folder = tmp_path_factory.mktemp("recordings")
    for utterance in read_manifest(noise_manifest(["나"], 4)):
        shutil.copy(utterance.audio, folder / f"{utterance.id}.wav")
        (folder / f"{utterance.id}.txt").write_text(utterance.text, encoding="utf-8")
    return folder


def enrolled(recordings: Path, shared: Path, out: Path, *more: str):
    given = [str(recordings), "--adapter", str(shared), "--out", str(out), *more]
    return CliRunner().invoke(app, given, catch_exceptions=False)


def test_a_folder_of_recordings_becomes_a_personal_adapter(recordings, shared, tmp_path):
    done = json.loads(enrolled(recordings, shared, tmp_path / "mine", "--rate", "0.01", "--json").stdout)
    assert sorted(one["name"] for one in done["unseen"]) == sorted(path.name for path in recordings.glob("*.wav"))
    assert all(one["said"] for one in done["unseen"])
    assert done["kept"]
    assert done["steps"] > 0
    before, info = load_adapter(shared)
    after, own = load_adapter(tmp_path / "mine")
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    trained = {name for name in after if "decoder" in name and name.endswith("_B")}
    assert changed - {name for name in after if "lora_gate" in name} == trained
    numbers, rows = (sum(count(after[name]) for name in trained) for count in (torch.Tensor.numel, len))
    assert done["private_bytes"] == numbers + 2 * rows  # int8 with a scale of 16 bits for each row
    assert not any(
        float(after[name].abs().max()) for name in after if "lora_gate" in name
    )  # another person's are not used
    assert own == replace(info, split="fedsa", config=own.config)


def test_what_does_not_help_is_not_kept_unless_it_is_wanted(recordings, shared, tmp_path):
    good, out = tmp_path / "good", tmp_path / "mine"
    enrolled(recordings, shared, good, "--rate", "0.01", "--keep")  # knows these sentences already
    again = enrolled(recordings, good, out, "--rate", "10")
    assert "Not kept" in again.stdout
    assert "somebody's own (split fedsa); unless it is yours, give RUN/shared" in again.stderr
    assert not out.exists()
    assert "Kept" in enrolled(recordings, good, out, "--rate", "10", "--keep").stdout
    load_adapter(out)


def test_one_recording_is_not_checked_and_said_so(recordings, shared, tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    for path in sorted(recordings.iterdir())[:2]:
        shutil.copy(path, one)
    done = enrolled(one, shared, tmp_path / "mine")
    assert "nothing to check with" in done.stdout
    assert "somebody's own" not in done.stderr


def test_a_lexicon_adds_the_spellings_that_the_texts_show(recordings, shared, tmp_path):
    own, lexicon = tmp_path / "own", tmp_path / "lexicon.jsonl"
    shutil.copytree(recordings, own)
    for path, text in zip(sorted(own.glob("*.txt")), ("coffee를 줘", "meeting에 가", "bus를 타", "나"), strict=True):
        path.write_text(text, encoding="utf-8")
    pairs = [["커피", "coffee"], ["미팅", "meeting"], ["버스", "bus"], ["택시", "taxi"]]
    lines = [{"text": f"{korean}를 {korean}에", "loanwords": [[korean, latin]]} for korean, latin in pairs]
    lexicon.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    told = enrolled(own, shared, tmp_path / "mine", "--lexicon", str(lexicon), "--keep").stdout
    assert "spellings of 4 loanwords" in told
    table = SpellingTable.read(tmp_path / "mine")
    assert table is not None
    assert table.respell("커피를 버스를 택시에") == "coffee를 bus를 taxi에"  # all three in Latin: so is an unseen one
    lexicon.write_text(json.dumps({"text": "나"}), encoding="utf-8")
    again = enrolled(own, shared, tmp_path / "mine", "--keep")
    assert "the spellings of an earlier enrolment went with its adapter" in again.stderr
    assert SpellingTable.read(tmp_path / "mine") is None
    with pytest.raises(ManifestError, match="has no loanwords: give a manifest"):
        enrolled(own, shared, tmp_path / "mine", "--lexicon", str(lexicon))


def test_the_shared_adapter_is_never_overwritten(recordings, shared, tmp_path):
    before = {path.name: path.read_bytes() for path in shared.iterdir()}
    with pytest.raises(ConfigError, match="which others start from too: give another folder"):
        enrolled(recordings, shared, shared.parent / "other" / ".." / shared.name, "--keep")
    assert {path.name: path.read_bytes() for path in shared.iterdir()} == before


def test_lines_of_several_speakers_are_no_person(recordings, shared, tmp_path):
    lines = [
        {"audio": str(path), "text": "나", "speaker": f"p{i % 2}"} for i, path in enumerate(recordings.glob("*.wav"))
    ]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with pytest.raises(ManifestError, match=r"several speakers \(p0, p1\); give those of one person"):
        enrolled(tmp_path / "all.jsonl", shared, tmp_path / "mine")


@pytest.mark.parametrize(
    ("option", "told"), [(("--rate", "nan"), "no learning rate"), (("--gate", "foo"), "unknown gate")]
)
def test_what_nothing_can_train_with_is_refused(recordings, shared, tmp_path, option, told):
    with pytest.raises(ConfigError, match=told):
        enrolled(recordings, shared, tmp_path / "mine", "--part", "gate", *option)


def test_an_adapter_of_another_base_is_refused(recordings, shared, tmp_path):
    tensors, info = load_adapter(shared)
    save_adapter(tmp_path / "other", tensors, replace(info, base_fingerprint="whisper:other"))
    with pytest.raises(AdapterMismatchError, match="load that base instead"):
        enrolled(recordings, tmp_path / "other", tmp_path / "mine")
