"""Recordings that wait: in order, whole, sent once as far as a device can know, never lost."""

import errno
import os
from pathlib import Path

import pytest

from benchmarks.stub_server import HANG_UP, TEXT, problem
from clients.device.audio import encode_file
from clients.device.client import DeviceClient
from clients.device.http import ServerAddress
from clients.device.messages import RefusedError, UnreachableError
from clients.device.queue import DONE, FAILED, WAITING, RecordingQueue
from clients.device.seal import Seal
from fl.core.errors import StoreError

KEY = Seal(b"k" * 32)


@pytest.fixture
def upload(wav):
    return encode_file(wav)


class Killed(BaseException):
    """What a process gets that is killed: nothing of ours may catch it."""


def test_what_was_added_comes_back_in_order_with_its_key(tmp_path, upload):
    queue = RecordingQueue(tmp_path, 2**20)
    names = [queue.add(upload, "ko", "srt") for _ in range(3)]
    assert queue.names() == names == sorted(names)
    entry = queue.load(names[0])
    assert (entry.upload, entry.language, entry.format) == (upload, "ko", "srt")
    assert len({queue.load(name).key for name in names}) == 3


def test_numbers_are_never_given_twice_whatever_was_sent_meanwhile(tmp_path, upload):
    queue = RecordingQueue(tmp_path, 2**20)
    first, second = queue.add(upload), queue.add(upload)
    queue.finish(second, "done")
    queue.fail(first, "refused")
    assert [name[:8] for name in (first, second, queue.add(upload))] == ["00000001", "00000002", "00000003"]


def test_a_full_queue_refuses_the_new_and_keeps_the_old(tmp_path, upload):
    queue = RecordingQueue(tmp_path, 2 * len(upload.content) + 1000)
    names = [queue.add(upload), queue.add(upload)]
    with pytest.raises(StoreError, match=r"idiolect device flush"):
        queue.add(upload)
    assert queue.names() == names


def test_a_full_disk_is_a_typed_error_and_leaves_no_half_entry(tmp_path, upload, monkeypatch):
    queue = RecordingQueue(tmp_path, 2**20)
    queue.add(upload)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        queue.add(upload)
    assert len(os.listdir(tmp_path / WAITING)) == 1


def test_a_sealed_entry_shows_nothing_and_cannot_take_anothers_place(tmp_path, upload):
    queue = RecordingQueue(tmp_path, 2**20, KEY)
    first, second = queue.add(upload, "ko"), queue.add(upload, "en")
    content = (tmp_path / WAITING / first).read_bytes()
    assert b"fLaC" not in content
    assert b"language" not in content
    (tmp_path / WAITING / second).write_bytes(content)
    assert queue.load(first).language == "ko"
    with pytest.raises(StoreError, match="altered"):
        queue.load(second)
    queue.finish(first, "비밀")
    assert "비밀".encode() not in (tmp_path / DONE / first).read_bytes()
    assert queue.answer(first) == "비밀"


# Sending


@pytest.fixture
def filled(client, upload):
    return [client.queue.add(upload) for _ in range(3)]


def keys(server):
    return [request.headers["Idempotency-Key"] for request in server.requests if request.method == "POST"]


def test_flushing_sends_all_in_order_and_keeps_the_answers(server, client, filled):
    flushed = []
    assert client.flush(flushed.append) == 3
    assert [one.name for one in flushed] == filled
    assert keys(server) == [name[9:] for name in filled]
    assert client.queue.names() == []
    assert client.queue.names(DONE) == filled
    assert TEXT in client.queue.answer(filled[0])
    assert client.flush() == 0
    assert len(server.requests) == 3


def test_without_a_server_nothing_is_lost_and_the_order_is_kept(server, client, filled):
    server.script.extend([problem(503, "closing")] * 3)
    with pytest.raises(UnreachableError):
        client.flush()
    assert client.queue.names() == filled
    server.requests.clear()
    client.flush()
    assert keys(server) == [name[9:] for name in filled]


def test_a_recording_that_the_server_never_takes_is_put_aside_and_the_others_are_sent(server, client, filled):
    server.script.append(problem(422, "unusable-audio", "is silent"))
    flushed = []
    assert client.flush(flushed.append) == 2
    assert [bool(one.reason) for one in flushed] == [True, False, False]
    assert client.queue.names(FAILED) == filled[:1]
    assert "is silent" in client.queue.answer(filled[0], FAILED)
    assert client.queue.load(filled[0], FAILED).upload.codec == "flac"  # the recording is still there


@pytest.mark.parametrize(
    ("status", "slug"),
    [(401, "unauthorized"), (403, "forbidden-origin"), (404, "not-found"), (422, "adapter-mismatch"), (405, "")],
)
def test_a_refusal_that_is_not_the_recordings_fault_puts_nothing_aside(server, client, filled, status, slug):
    server.script.append(problem(status, slug))
    with pytest.raises(RefusedError):
        client.flush()
    assert client.queue.names() == filled
    assert client.queue.names(FAILED) == []


def test_a_damaged_entry_is_put_aside_and_does_not_hold_up_the_others(server, client, filled):
    path = client.queue.folder / WAITING / filled[1]
    path.write_bytes(b"{}" + path.read_bytes()[40:])
    flushed = []
    assert client.flush(flushed.append) == 2
    assert [bool(one.reason) for one in flushed] == [False, True, False]
    assert client.queue.names(FAILED) == [filled[1]]


def test_two_processes_do_not_send_the_same_queue(client, filled):
    other = RecordingQueue(client.queue.folder, 2**20)
    with client.queue.sending(), pytest.raises(StoreError, match="another process"), other.sending():
        pass
    with other.sending() as names:
        assert names == filled


def test_a_recording_can_be_added_while_the_queue_is_sent(server, client, filled, upload):
    added = []
    client.flush(lambda one: added.append(client.queue.add(upload)) if not added else None)
    assert client.queue.names() == added


# Killed in the middle: the next process goes on. Each case dies at another step of sending one entry.


def restarted(client):
    """A new process on the same folder."""
    return DeviceClient(client.store.folder, client.settings, ServerAddress(client.server.url), retry=client.retry)


def die(*_, **__):
    raise Killed


@pytest.mark.parametrize(
    "step", ["before sending", "before the answer is kept", "while it is kept", "before it is dropped"]
)
def test_killed_at_any_step_each_recording_is_answered_in_order_and_none_is_lost(
    server, client, filled, monkeypatch, step
):
    with monkeypatch.context() as patch:
        if step == "before sending":
            patch.setattr(client, "transcribe", die)
        elif step == "before the answer is kept":
            patch.setattr(client.queue, "finish", die)
        elif step == "while it is kept":
            patch.setattr(os, "replace", die)
        else:
            patch.setattr(Path, "unlink", die)
        with pytest.raises(Killed):
            client.flush()
    sent_before = len(server.requests)
    again = restarted(client)
    again.flush()
    assert again.queue.names() == []
    assert again.queue.names(DONE) == filled
    assert all(TEXT in again.queue.answer(name) for name in filled)
    expected = {"before sending": 0, "before it is dropped": 1}.get(step, 1)
    assert sent_before == expected
    times = [server.heard[name[9:]] for name in filled]
    # Where the answer was not yet kept, the same key is sent again, and a server that knows it answers from memory.
    assert times == ([2, 1, 1] if step in ("before the answer is kept", "while it is kept") else [1, 1, 1])


def test_killed_while_a_refused_recording_is_put_aside_it_is_still_there(server, client, filled, monkeypatch):
    whole = os.replace

    def die_on_move(source, target):
        if os.path.basename(source) == filled[0]:
            raise Killed
        whole(source, target)

    server.script.append(problem(422, "unusable-audio"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die_on_move)
        with pytest.raises(Killed):
            client.flush()
    assert restarted(client).queue.names() == filled
    server.script.append(problem(422, "unusable-audio"))
    restarted(client).flush()
    assert restarted(client).queue.names(FAILED) == filled[:1]
    assert restarted(client).queue.names(DONE) == filled[1:]


def test_killed_while_a_recording_is_added_there_is_no_half_of_it(client, upload, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(Killed):
            client.queue.add(upload)
    again = restarted(client)
    assert again.queue.names() == []
    assert again.queue.load(again.queue.add(upload)).upload == upload


def test_an_answer_that_got_lost_on_the_way_is_asked_for_with_the_same_key(server, client, filled):
    server.script.append(HANG_UP)  # it may have been transcribed: the device cannot know
    client.flush()
    assert keys(server)[:2] == [filled[0][9:]] * 2


def test_answers_are_kept_until_they_are_forgotten_and_what_waits_stays(server, client, filled, upload):
    server.script.append(problem(422, "unusable-audio"))
    client.flush()
    waiting = client.queue.add(upload)
    assert client.queue.forget() == 3
    assert (client.queue.names(DONE), client.queue.names(FAILED), client.queue.names()) == ([], [], [waiting])
    assert os.listdir(client.queue.folder / FAILED) == []
