"""``idiolect device``: what it prints, what it returns, what it never shows."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from benchmarks.stub_server import TEXT, Reply, StubServer, events, problem
from clients.device import http as device_http
from clients.device import settings as device_settings
from clients.device.cli import main

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Attempts follow each other at once."""
    monkeypatch.setattr(device_http.time, "sleep", lambda _: None)
    original = device_http.RetryPolicy.__init__
    monkeypatch.setattr(
        device_http.RetryPolicy, "__init__", lambda self, **given: original(self, **{"sleep": lambda _: None, **given})
    )


@pytest.fixture
def device(tmp_path, server, capsys):
    """A function that runs ``idiolect device`` on one folder: exit code, lines of standard output, standard error."""

    def run(*words):
        code = main([*map(str, words), "--folder", str(tmp_path / "device")])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    run.init = lambda *words: run("init", "--server", server.url, *words)
    return run


@pytest.fixture
def packed(tmp_path, make_adapter):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(make_adapter())
    return path


def test_from_nothing_to_a_transcript(device, server, packed, wav):
    assert device.init()[0] == 0
    assert device("adapter", "set", packed)[0] == 0
    assert device("transcribe", wav) == (0, [TEXT], "")
    assert server.paths() == ["PUT /v1/adapters", "POST /v1/audio/transcriptions"]


def test_json_for_scripts(device, packed, wav):
    code, lines, _ = device.init("--json")
    assert (code, json.loads(lines[0])["encryption"]) == (0, "none")
    assert json.loads(device("adapter", "set", packed, "--json")[1][0])["tensors"] == 3
    shown = json.loads(device("adapter", "show", "--json")[1][0])
    assert {"base_name", "dtype", "gate", "r", "bytes", "digest", "budget_bytes", "encryption"} <= shown.keys()
    assert json.loads(device("transcribe", wav, "--json")[1][0]) == {"text": TEXT}
    code, lines, err = device("transcribe", "nothing.wav", "--json")
    assert (code, err) == (1, "")
    assert json.loads(lines[0])["type"] == "AudioError"


def test_streaming_prints_the_text_as_it_grows(device, wav):
    device.init()
    assert device("transcribe", wav, "--stream") == (0, [TEXT], "")
    lines = [json.loads(line) for line in device("transcribe", wav, "--stream", "--json")[1]]
    assert lines[0] == {"partial": TEXT.split()[0]}
    assert lines[-1] == {"text": TEXT}


@pytest.mark.parametrize("words", [(), ("--stream",), ("--format", "srt")])
def test_a_transcript_cannot_steer_the_terminal(device, server, wav, words):
    device.init()
    evil = "\x1b[2J\x07ab\x9b한글"
    heard = {"type": "transcript.text.done", "text": evil}
    plain = Reply(body=evil.encode() if words[1:] else json.dumps({"text": evil}).encode())
    server.script.append(events({"type": "transcript.text.delta", "delta": evil}, heard) if len(words) == 1 else plain)
    code, lines, _ = device("transcribe", wav, *words)
    assert (code, "".join(lines)) == (0, "[2Jab한글")


@pytest.mark.parametrize("kind", ["text", "verbose_json", "srt", "vtt"])
def test_other_formats_are_printed_as_they_came(device, server, wav, kind):
    device.init()
    code, lines, _ = device("transcribe", wav, "--format", kind)
    assert code == 0
    assert json.loads(lines[0]) == {"text": TEXT} if kind == "verbose_json" else lines == [TEXT]


def test_errors_are_one_line_with_exit_code_1(device, wav, tmp_path, packed):
    code, out, err = device("transcribe", wav)
    assert (code, out) == (1, [])
    assert err.startswith("idiolect: no device is set up")
    device.init()
    assert device("transcribe", tmp_path / "gone.wav")[0] == 1
    assert device("adapter", "show")[0] == 1
    assert device("adapter", "set", tmp_path / "gone")[0] == 1
    assert device("adapter", "set", wav)[0] == 1
    assert device("enrol", tmp_path)[0] == 1


@pytest.mark.parametrize(
    "words", [[], ["dance"], ["transcribe"], ["init"], ["adapter"], ["transcribe", "a", "--format", "x"]]
)
def test_wrong_usage_is_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: idiolect device" in capsys.readouterr().err


def test_every_command_has_a_help(capsys):
    for words in (
        [],
        ["init"],
        ["adapter"],
        ["adapter", "set"],
        ["transcribe"],
        ["record"],
        ["queue"],
        ["flush"],
        ["enrol"],
        ["adapt"],
    ):
        with pytest.raises(SystemExit) as caught:
            main([*words, "--help"])
        assert caught.value.code == 0
        assert "usage: idiolect device" in capsys.readouterr().out


def test_a_refusal_is_exit_code_1_and_an_absent_server_3(device, server, wav):
    device.init()
    server.script.append(problem(422, "unusable-audio", "is silent"))
    assert device("transcribe", wav)[0] == 1
    server.script.extend([problem(503, "closing")] * 5)
    code, _, err = device("transcribe", wav)
    assert code == 3
    assert "after 5 attempts" in err


def test_a_recording_that_finds_no_server_is_queued_and_flushed_later(device, server, wav):
    device.init()
    server.script.extend([problem(503, "closing")] * 5)
    code, lines, _ = device("transcribe", wav, "--queue", "--json")
    assert code == 3  # there is no transcript yet
    name = json.loads(lines[0])["queued"]
    assert json.loads(device("queue", "--json")[1][0]) == {"name": name, "state": "waiting", "text": ""}
    assert device("queue", wav)[0] == 0
    code, lines, _ = device("flush")
    assert code == 0
    assert [line.endswith(TEXT) for line in lines] == [True, True]
    assert [json.loads(line)["state"] for line in device("queue", "--json")[1]] == ["done", "done"]
    assert device("queue", "--forget")[0] == 0
    assert device("queue")[1] == []


def test_flushing_says_by_its_exit_code_what_became_of_it(device, server, wav):
    device.init()
    device("queue", wav, wav)
    server.script.extend([problem(503, "closing")] * 5)
    assert device("flush")[0] == 3
    server.script.append(problem(422, "unusable-audio", "is silent"))
    code, lines, _ = device("flush")
    assert code == 1
    assert "REFUSED" in lines[0]
    assert "is silent" in lines[0]
    assert lines[1].endswith(TEXT)
    assert device("flush")[0] == 0


def test_what_the_system_forbids_is_one_line_with_exit_code_1(device, wav, monkeypatch):
    device.init()

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied", "queue")

    monkeypatch.setattr(os, "listdir", forbidden)
    code, _, err = device("queue")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "Permission denied" in err


def test_a_reader_that_stops_early_makes_no_noise(tmp_path, server):
    words = [sys.executable, "-c", "from clients.device.cli import main; import sys; sys.exit(main(sys.argv[1:]))"]
    process = subprocess.Popen(
        [*words, "init", "--server", server.url, "--folder", str(tmp_path / "device")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
    process.stderr.close()


def test_the_folder_is_for_its_owner_alone(device, tmp_path):
    device.init()
    assert (tmp_path / "device").stat().st_mode & 0o777 == 0o700


def test_an_adapter_is_exported_for_its_owner_alone_and_replaces_nothing(device, packed, tmp_path):
    device.init()
    device("adapter", "set", packed)
    out = tmp_path / "out.safetensors"
    assert device("adapter", "export", out)[0] == 0
    assert out.read_bytes() == packed.read_bytes()
    assert out.stat().st_mode & 0o777 == 0o600
    assert device("adapter", "export", out)[0] == 1
    assert device("adapter", "export", out, "--force")[0] == 0


def test_an_adapter_can_be_stored_in_another_precision(device, packed):
    device.init()
    device("adapter", "set", packed, "--dtype", "int8")
    assert json.loads(device("adapter", "show", "--json")[1][0])["dtype"] == "int8"


def test_the_budget_is_the_one_that_was_set(device, packed, make_adapter):
    device.init("--budget-mib", len(make_adapter()) / 2**20)
    assert device("adapter", "set", packed)[0] == 0
    before = json.loads(device("adapter", "show", "--json")[1][0])["digest"]
    packed.write_bytes(make_adapter(width=50))
    code, _, err = device("adapter", "set", packed)
    assert code == 1
    assert "--budget-mib" in err
    assert json.loads(device("adapter", "show", "--json")[1][0])["digest"] == before


def test_files_are_encrypted_with_a_passphrase_from_the_environment(device, packed, wav, tmp_path, monkeypatch):
    monkeypatch.setenv("IDIOLECT_PASSPHRASE", "열려라 참깨")
    device.init("--encrypt", "passphrase")
    device("adapter", "set", packed)
    device("queue", wav)
    device("flush")
    contents = b"".join(p.read_bytes() for p in (tmp_path / "device").rglob("*") if p.is_file())
    for marker in (b"gated_lora", b"fLaC", TEXT.encode()):
        assert marker not in contents
    monkeypatch.setenv("IDIOLECT_PASSPHRASE", "wrong")
    code, _, err = device("transcribe", wav)
    assert (code, "wrong passphrase" in err) == (1, True)
    monkeypatch.delenv("IDIOLECT_PASSPHRASE")
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: False))
    assert device("transcribe", wav)[0] == 1
    monkeypatch.setenv("IDIOLECT_PASSPHRASE", "열려라 참깨")
    assert device("transcribe", wav)[1] == [TEXT]


@pytest.fixture
def sealed(device, packed, wav, tmp_path, monkeypatch):
    """A device with a passphrase, as a function that writes other settings in place of its own."""
    monkeypatch.setenv("IDIOLECT_PASSPHRASE", "열려라 참깨")
    monkeypatch.setenv("IDIOLECT_TOKEN", "tok-5521-secret")
    device.init("--encrypt", "passphrase")
    path = tmp_path / "device" / "device.json"
    whole = json.loads(path.read_text())
    return lambda **changes: path.write_text(json.dumps({**whole, **changes}))


@pytest.mark.parametrize("stored", ["nothing", "adapter", "queue"])
@pytest.mark.parametrize("change", ["server", "no encryption", "no encryption, no seal", "key file", "missing seal"])
def test_a_server_that_was_not_sealed_in_gets_neither_token_nor_speech(
    device, sealed, server, packed, wav, tmp_path, stored, change
):
    write = sealed
    if stored != "nothing":
        device("adapter", "set", packed)
    if stored == "queue":
        device("queue", wav)
    if change == "no encryption, no seal" and stored == "nothing":
        pytest.skip("such a folder is that of a new device")
    with StubServer() as other:
        changes = {"server": other.url}
        if change.startswith("no encryption"):
            changes |= {"encryption": "none"}
        if change == "key file":
            (tmp_path / "key").write_text("00" * 32)
            (tmp_path / "key").chmod(0o600)
            changes |= {"encryption": "key-file", "key_file": str(tmp_path / "key")}
        write(**changes)
        if change.endswith("seal"):
            (tmp_path / "device" / "settings.sealed").unlink(missing_ok=True)
        for words in (("transcribe", wav, "--base-only"), ("transcribe", wav, "--queue"), ("flush",), ("queue", wav)):
            code, _, err = device(*words)
            assert code == 1, words
            assert "idiolect device init" in err or "wrong passphrase or key" in err
        assert other.requests == []
    assert server.requests == []
    write()
    assert len(device("queue")[1]) == (stored == "queue") or change.endswith("seal")  # nothing was added or lost


def test_another_server_is_confirmed_by_the_passphrase(device, sealed, server, packed, wav, tmp_path, monkeypatch):
    device("adapter", "set", packed)
    before = {path: path.read_bytes() for path in (tmp_path / "device").iterdir()}
    with StubServer() as other:
        words = ("init", "--server", other.url, "--encrypt", "passphrase")
        for wrong in ("wrong", ""):
            monkeypatch.setenv("IDIOLECT_PASSPHRASE", wrong)
            monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: False))
            assert device(*words)[0] == 1
            assert {path: path.read_bytes() for path in (tmp_path / "device").iterdir()} == before
        monkeypatch.setenv("IDIOLECT_PASSPHRASE", "열려라 참깨")
        assert device(*words)[0] == 0
        assert device("transcribe", wav)[1] == [TEXT]
        assert len(other.requests) == 2
        (tmp_path / "device" / "device.json").write_bytes(before[tmp_path / "device" / "device.json"])
        code, _, err = device("transcribe", wav)  # an older file beside the newer seal
        assert (code, "server" in err) == (1, True)
    assert server.requests == []


def test_lost_settings_are_not_written_anew_over_what_they_opened(device, sealed, packed, wav, tmp_path):
    device("adapter", "set", packed)
    path = tmp_path / "device" / "device.json"
    whole = path.read_bytes()
    path.unlink()
    for words in ((), ("--encrypt", "passphrase")):
        code, _, err = device.init(*words)
        assert (code, "restore" in err, path.exists()) == (1, True, False)
    path.write_bytes(whole)
    assert device("transcribe", wav)[1] == [TEXT]


def test_a_device_of_a_version_without_sealed_settings_is_confirmed_once(device, sealed, packed, wav, tmp_path):
    device("adapter", "set", packed)
    (tmp_path / "device" / "settings.sealed").unlink(missing_ok=True)
    code, _, err = device("transcribe", wav)
    assert (code, "idiolect device init" in err) == (1, True)
    assert device.init("--encrypt", "passphrase")[0] == 0
    assert device("transcribe", wav)[1] == [TEXT]


def test_the_token_comes_from_a_file_or_the_environment_and_is_never_shown(device, server, wav, tmp_path, monkeypatch):
    token = "tok-5521-secret"
    path = tmp_path / "token"
    path.write_text(f"{token}\n")
    path.chmod(0o600)
    device.init("--token-file", path)
    server.script.append(problem(401, "unauthorized"))
    shown = str(device("transcribe", wav)) + str(device("transcribe", wav, "--json")) + str(device("adapter", "show"))
    assert server.requests[0].headers["Authorization"] == f"Bearer {token}"
    assert token not in shown
    assert token not in (tmp_path / "device" / "device.json").read_text()
    path.chmod(0o644)
    code, _, err = device("transcribe", wav)
    assert (code, "chmod 600" in err) == (1, True)
    monkeypatch.setenv("IDIOLECT_TOKEN", "other-token")
    device("transcribe", wav)
    assert server.requests[-1].headers["Authorization"] == "Bearer other-token"


def test_no_option_takes_a_secret(capsys):
    with pytest.raises(SystemExit):
        main(["init", "--server", "https://example.org", "--token", "x"])
    with pytest.raises(SystemExit):
        main(["init", "--server", "https://example.org", "--passphrase", "x"])


def test_a_recording_is_transcribed_or_kept(device, server, tmp_path, monkeypatch):
    device.init("--codec", "opus")
    noise = np.random.default_rng(0).standard_normal((16_000, 1)).astype(np.float32) / 10
    fake = types.SimpleNamespace(rec=lambda *_, **__: noise, wait=lambda: None)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    assert device("record", "--seconds", 1)[1] == [TEXT]
    assert server.requests[0].form["file"][0].startswith(b"OggS")
    out = tmp_path / "kept.ogg"
    assert device("record", "--seconds", 1, "--output", out)[0] == 0
    assert out.read_bytes().startswith(b"OggS")
    assert len(server.requests) == 1


def test_an_adapter_is_trained_from_a_folder(device, server, packed, wav, tmp_path):
    device.init()
    device("adapter", "set", packed)
    folder = tmp_path / "labelled"
    folder.mkdir()
    (folder / "a.wav").write_bytes(wav.read_bytes())
    (folder / "a.txt").write_text("오늘 meeting")
    sentence = {"name": "0", "said": "오늘 meeting", "before": "오늘 미팅", "after": "오늘 meeting", "errors": [2, 0]}
    server.script.append(Reply(body=json.dumps({"kept": False, "unseen": [sentence]}).encode()))
    code, lines, _ = device("enrol", folder)
    assert (code, lines[0]) == (0, "a.wav: 오늘 meeting")
    assert lines[1:4] == [
        "  before (2 errors): 오늘 미팅",
        "  after  (0 errors): 오늘 meeting",
        "errors in sentences that were not trained on: 2 -> 0",
    ]
    assert lines[-1].startswith("not kept")
    code, lines, _ = device("adapt", folder, "--keep", "--json")  # the name that it had
    assert (code, json.loads(lines[0])["steps"]) == (0, 3)
    assert server.requests[-1].text("keep") == "True"


def test_the_folder_may_come_from_the_environment(tmp_path, monkeypatch, server):
    monkeypatch.setenv(device_settings.HOME_VARIABLE, str(tmp_path / "elsewhere"))
    assert main(["init", "--server", server.url]) == 0
    assert os.listdir(tmp_path / "elsewhere") == ["device.json"]
