"""Adapters behind handles: for their own token, for a while, within a budget, and gone afterwards."""

import dataclasses

import pytest
from starlette.testclient import TestClient

from fl.core.errors import AdapterError
from fl.serving.engine.adapters import admit
from fl.serving.http.auth import TokenFile
from fl.serving.http.handles import Handles
from fl.serving.http.problems import ProblemError

TRANSCRIBE, ADAPTERS, URL = "/v1/audio/transcriptions", "/v1/adapters", "http://127.0.0.1"


@pytest.fixture
def adapters(base, packed):
    """Six adapters of the same size."""
    return [admit(packed(seed=seed), base) for seed in range(6)]


@pytest.fixture
def store(adapters, clock):
    """``store(room=3, per_owner=10, seconds=60.0)``: handles with room for so many adapters."""

    def make(room=3, per_owner=10, seconds=60.0):
        return Handles(room * adapters[0].bytes, seconds, per_owner, clock)

    return make


def test_the_least_recently_used_gives_way_when_the_budget_is_full(adapters, store):
    handles = store(room=3)
    first, second, third = (handles.put("ann", adapter) for adapter in adapters[:3])
    assert handles.get("ann", first) is adapters[0]  # now the second is the oldest
    fourth = handles.put("bob", adapters[3])
    with pytest.raises(ProblemError, match="no adapter of this token"):
        handles.get("ann", second)
    assert [handles.get("ann", h).digest for h in (first, third)] == [adapters[0].digest, adapters[2].digest]
    assert handles.get("bob", fourth) is adapters[3]
    assert handles.bytes == 3 * adapters[0].bytes
    assert handles.evicted == 1


def test_a_handle_is_gone_after_its_time_and_use_prolongs_it(adapters, store, clock):
    handles = store(seconds=60.0)
    first, second = handles.put("ann", adapters[0]), handles.put("ann", adapters[1])
    clock.now += 50
    handles.get("ann", first)
    assert handles.look("ann", second) == (adapters[1], 10.0)  # looking is not using
    clock.now += 20
    assert handles.get("ann", first) is adapters[0]
    with pytest.raises(ProblemError):
        handles.get("ann", second)
    assert (len(handles), handles.bytes) == (1, adapters[0].bytes)


def test_a_handle_of_another_token_is_as_unknown_as_one_that_never_was(adapters, store):
    handles = store()
    handle = handles.put("ann", adapters[0])
    said = set()
    for owner, asked in (("bob", handle), ("ann", handle[:-1]), ("", handle), ("ann", "")):
        with pytest.raises(ProblemError) as raised:
            handles.get(owner, asked)
        said.add((raised.value.slug, str(raised.value)))
        with pytest.raises(ProblemError):
            handles.drop(owner, asked)
    assert len(said) == 1
    assert handles.get("ann", handle) is adapters[0]


def test_the_same_adapter_keeps_its_handle_for_its_owner_alone(adapters, store):
    handles = store()
    mine = handles.put("ann", adapters[0])
    assert handles.put("ann", dataclasses.replace(adapters[0])) == mine
    assert handles.put("bob", adapters[0]) != mine
    assert len(handles) == 2


def test_an_adapter_that_no_row_can_hold_is_refused_when_it_is_put(client, engine, packed):
    engine.refuse = AdapterError("the adapter needs 9 bytes in all rows of this server, which gives 8")
    answer = client.put(ADAPTERS, content=packed())
    assert answer.status_code == 422
    assert "needs 9 bytes" in answer.json()["detail"]
    assert len(client.app.state.service.handles) == 0


def test_one_token_cannot_push_out_the_others(adapters, store):
    handles = store(room=6, per_owner=2)
    other = handles.put("bob", adapters[5])
    own = [handles.put("ann", adapter) for adapter in adapters[:4]]
    assert handles.get("bob", other) is adapters[5]
    with pytest.raises(ProblemError):
        handles.get("ann", own[1])
    assert len(handles) == 3


def test_when_the_budget_is_full_who_holds_most_gives_way(adapters, store):
    handles = store(room=4)

    def held(owner, made):
        there = []
        for handle in made:
            try:
                there.append(handles.look(owner, handle)[0].digest)
            except ProblemError:
                there.append(None)
        return there

    mine = [handles.put("ann", adapters[0])]
    theirs = [handles.put("bob", adapter) for adapter in adapters[:5]]  # five, where three have room
    assert held("ann", mine) == [adapters[0].digest]
    assert held("bob", theirs)[:2] == [None, None]
    mine.append(handles.put("ann", adapters[1]))  # in the place of bob, who held three
    assert held("bob", theirs)[2:] == [None, adapters[3].digest, adapters[4].digest]
    mine.append(handles.put("ann", adapters[2]))  # in her own place: bob has no more than she
    assert held("ann", mine) == [None, adapters[1].digest, adapters[2].digest]
    assert held("bob", theirs)[3:] == [adapters[3].digest, adapters[4].digest]


def test_one_that_is_larger_than_the_budget_is_refused_and_pushes_nobody_out(adapters, store):
    handles = store(room=1)
    kept = handles.put("ann", adapters[0])
    larger = dataclasses.replace(
        adapters[1], tensors={**adapters[1].tensors, "more": adapters[0].tensors[min(adapters[0].tensors)]}
    )
    with pytest.raises(ProblemError) as raised:
        handles.put("bob", larger)
    assert raised.value.slug == "too-large"
    assert handles.get("ann", kept) is adapters[0]


def test_handles_cannot_be_guessed(adapters, store):
    handles = store(room=6)
    made = {handles.put(f"owner {i}", adapters[0]) for i in range(6)}
    assert len(made) == 6
    assert all(len(handle) == 32 for handle in made)  # 192 bits


# Over HTTP


def test_an_adapter_is_put_used_looked_at_and_dropped(client, engine, packed, recording):
    data = packed(seed=1)
    put = client.put(ADAPTERS, content=data)
    assert put.status_code == 200
    found = put.json()
    assert found["expires_in"] == pytest.approx(3600, abs=5)
    assert client.put(ADAPTERS, content=data).json()["handle"] == found["handle"]
    path = f"{ADAPTERS}/{found['handle']}"
    assert client.get(path).json()["digest"] == found["digest"]
    assert client.head(path).status_code == 200
    files = {"file": ("a.flac", recording())}
    assert client.post(TRANSCRIBE, files=files, data={"adapter_handle": found["handle"]}).status_code == 200
    assert engine.asked[0].adapter.digest == found["digest"]
    assert client.delete(path).status_code == 204
    assert client.head(path).status_code == 404
    answer = client.post(TRANSCRIBE, files=files, data={"adapter_handle": found["handle"]})
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/unknown-handle")
    assert len(engine.asked) == 1


def test_a_handle_of_ann_is_unknown_to_bob(make_app, engine, people, packed, recording):
    with TestClient(make_app(TokenFile(people.path)), base_url=URL) as client:
        ann, bob = people.header(people.ann), people.header(people.bob)
        handle = client.put(ADAPTERS, content=packed(), headers=ann).json()["handle"]
        for call in (client.get, client.head, client.delete):
            assert call(f"{ADAPTERS}/{handle}", headers=bob).status_code == 404
        files = {"file": ("a.flac", recording())}
        stolen = client.post(TRANSCRIBE, files=files, data={"adapter_handle": handle}, headers=bob)
        assert stolen.status_code == 404
        assert engine.asked == []
        assert client.post(TRANSCRIBE, files=files, data={"adapter_handle": handle}, headers=ann).status_code == 200
        assert engine.asked[0].person == "ann"


def test_bob_does_not_evict_what_ann_holds_however_much_he_puts(make_app, people, packed, base):
    room = 3 * admit(packed(), base).bytes
    with TestClient(make_app(TokenFile(people.path), handle_bytes=room), base_url=URL) as client:
        ann, bob = people.header(people.ann), people.header(people.bob)
        kept = client.put(ADAPTERS, content=packed(), headers=ann).json()["handle"]
        last = [client.put(ADAPTERS, content=packed(seed=i), headers=bob).json()["handle"] for i in range(5)][-1]
        assert client.head(f"{ADAPTERS}/{kept}", headers=ann).status_code == 200
        assert client.head(f"{ADAPTERS}/{last}", headers=bob).status_code == 200


def test_an_adapter_that_is_refused_is_not_held(client, packed):
    for data, slug in (
        (packed(base_fingerprint="whisper:1x1+1:00"), "adapter-mismatch"),
        (packed()[:-1], "unusable-adapter"),
        (b"", "unusable-adapter"),
    ):
        answer = client.put(ADAPTERS, content=data)
        assert (answer.status_code, answer.json()["type"]) == (422, f"/problems/{slug}")
    assert len(client.app.state.service.handles) == 0


def test_an_adapter_beyond_the_limit_is_refused_by_its_announced_length_and_while_it_arrives(make_app, packed):
    data = packed()
    app = make_app(max_adapter_bytes=len(data) - 1)
    with TestClient(app, base_url=URL) as client:
        for content in (data, iter([data[:100], data[100:]])):
            answer = client.put(ADAPTERS, content=content)
            assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")
    assert app.state.service.body_bytes.held == 0


def test_nothing_is_held_after_the_server_stopped(make_app, packed):
    app = make_app()
    with TestClient(app, base_url=URL) as client:
        client.put(ADAPTERS, content=packed())
        assert len(app.state.service.handles) == 1
    assert (len(app.state.service.handles), app.state.service.handles.bytes) == (0, 0)
