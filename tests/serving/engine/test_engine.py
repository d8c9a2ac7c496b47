"""Everybody gets what they would get alone, whoever else is in the batch, and nothing of anybody stays behind."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from fl.adapters.gates.table import GATES
from fl.core.errors import AdapterError, AdapterMismatchError, AudioError, BaseModelError, ConfigError, RunError
from fl.serving.engine import engine as engine_module
from fl.serving.engine.engine import BatchEngine, EngineSettings
from fl.serving.engine.requests import BusyError, ClosedError, DeadlineError, Request


def everything(engine: BatchEngine) -> list[torch.Tensor]:
    """All tensors in which an engine keeps something of a request."""
    return [*engine._table._tensors(), *engine._cache.tensors]


@pytest.fixture
def mixed(nano, served, speech) -> list[Request]:
    """Every gate, three ranks, some sites only, the base, another window, several lengths, languages and prompts."""
    requests = [
        Request(speech(0.6 + 0.35 * i, i), served(i, gate, rank=(2, 4, 7)[i % 3]), person=f"p{i}")
        for i, gate in enumerate(GATES)
    ]
    requests.append(Request(speech(1.0, 20), None, language="en"))
    requests.append(Request(speech(0.8, 21), served(21, "cross", sites=("decoder.cross",))))
    requests.append(Request(speech(0.7, 22), served(22, "self", language="en", window="full")))
    prompts = ["회의록", "", "Flower, Whisper" * 20]
    return [replace(one, prompt=nano.prompt_ids(prompts[i % 3])) for i, one in enumerate(requests)]


@pytest.mark.parametrize("beams", [1, 3])
def test_each_request_gets_what_it_gets_alone(engine, finish, same, mixed, beams: int) -> None:
    requests = [replace(request, beams=beams) for request in mixed]
    wheel = engine(rows=32)
    found = finish(wheel, [wheel.submit(request) for request in requests])
    for transcript, request in zip(found, requests, strict=True):
        same(transcript, request)
    assert len({t.tokens for t in found}) > len(found) // 2  # the adapters do say different things


def test_words_have_the_times_that_they_have_alone(nano, engine, finish, served, speech, monkeypatch) -> None:
    """Whoever else is in the batch: the alignment uses the row's own adapter, prompt and states."""
    monkeypatch.setattr(engine_module, "timed_words", lambda tokenizer, tokens, times: times)  # noise has few words
    requests = [
        Request(
            speech(1.0 + i / 3, i), a, language="ko", prompt=nano.prompt_ids("a" * i), words=i != 1, beams=1 + i % 2
        )
        for i, a in enumerate((served(1), served(2, "low-rank"), None, served(3, "self", window="full")))
    ]
    together = engine(rows=8)
    found = finish(together, [together.submit(request) for request in requests])
    for transcript, request in zip(found, requests, strict=True):
        single = engine(rows=2)
        (expected,) = finish(single, [single.submit(request)])
        assert transcript.words == pytest.approx(expected.words)
        assert len(transcript.words) == (len(transcript.tokens) + 1 if request.words else 0)
    assert len({time for transcript in found for time in transcript.words}) > 3
    words = requests[0]
    other = engine(rows=2)
    (plain,) = finish(other, [other.submit(replace(words, adapter=None))])
    assert plain.words != found[0].words


def test_greedy_and_beams_share_a_batch(engine, finish, same, mixed) -> None:
    requests = [replace(request, beams=1 + i % 3) for i, request in enumerate(mixed)]
    wheel = engine(rows=24)
    for transcript, request in zip(finish(wheel, [wheel.submit(r) for r in requests]), requests, strict=True):
        same(transcript, request)


@pytest.mark.parametrize("dear", ["full window", "five beams"])
def test_short_requests_that_cost_much_do_not_go_before_long_ones(engine, served, speech, dear: str) -> None:
    """A fifth of a second in a window of 30 s, or with five beams, is not a 145th of the work of 29 s."""
    short = Request(speech(0.2), None, "ann", "ko", max_new_tokens=1)
    if dear == "five beams":
        short = replace(short, adapter=served(0), beams=5, max_new_tokens=None)
    long = Request(speech(29.0), served(1), "bob", "ko", max_new_tokens=1)
    wheel, order = engine(rows=5, waiting_each=200), []
    for request in [long, *[short] * 150, long]:
        future = wheel.submit(request)
        future.add_done_callback(lambda _, person=request.person: order.append(person))
    while order.count("bob") < 2:
        wheel.turn()
    assert order.count("ann") <= 15


@pytest.mark.parametrize("seed", range(4))
def test_rows_join_and_leave_between_steps(engine, finish, same, mixed, seed: int) -> None:
    """A few rows, many requests, submitted at random moments."""
    generator = np.random.default_rng(seed)
    requests = [replace(mixed[i], beams=int(generator.integers(1, 3))) for i in generator.permutation(len(mixed))]
    wheel, futures = engine(rows=4), []
    for request in requests:
        futures.append(wheel.submit(request))
        for _ in range(int(generator.integers(0, 6))):
            wheel.turn()
    for transcript, request in zip(finish(wheel, futures), requests, strict=True):
        same(transcript, request)


def test_rows_that_end_together_leave_without_moving_into_each_others_places(
    engine, finish, same, served, speech, monkeypatch
) -> None:
    wheel, moved = engine(rows=4), []
    move = wheel._table.move
    monkeypatch.setattr(
        wheel._table, "move", lambda source, target: (moved.append((source, target)), move(source, target))
    )
    limits = (3, 9, 3, 3)
    requests = [Request(speech(0.8, i), served(i), str(i), max_new_tokens=limit) for i, limit in enumerate(limits)]
    for transcript, request in zip(finish(wheel, [wheel.submit(r) for r in requests]), requests, strict=True):
        assert transcript.reason == "length"  # so that three end in one step
        same(transcript, request)
    assert moved == [(1, 0)]  # the one that goes on, once


def test_nothing_of_a_request_is_left_when_it_is_done(engine, finish, mixed) -> None:
    wheel = engine(rows=4)
    finish(wheel, [wheel.submit(request) for request in mixed])
    assert len(wheel._table) == 0
    assert all(not tensor.any() for tensor in everything(wheel))


def test_after_an_exception_a_request_without_adapter_gets_the_base(engine, finish, same, served, speech) -> None:
    """Elsewhere the hooks of the request before stay on, and its adapter answers (PEFT issue 3475)."""
    wheel = engine(rows=2)
    good = served(1)
    other = {name: tensor[:, :-1] if name.endswith("_A") else tensor for name, tensor in good.tensors.items()}
    failed = wheel.submit(Request(speech(0.8, 1), replace(good, tensors=other)))
    while wheel.turn():
        pass
    assert isinstance(failed.exception(timeout=0), AdapterMismatchError)
    request = Request(speech(0.8, 2), None, language="ko")
    same(finish(wheel, [wheel.submit(request)])[0], request)


def test_a_malicious_row_fails_alone_and_leaves_nothing(engine, finish, same, served, speech) -> None:
    """Finite tensors that overflow: the row has numbers that are not finite, its neighbours and successors do not."""
    wheel = engine(rows=3)
    huge = served(3)
    huge = replace(huge, tensors={name: tensor * 1e30 for name, tensor in huge.tensors.items()})
    others = [Request(speech(0.9, i), served(i, language="ko")) for i in (4, 5)]
    bad = wheel.submit(Request(speech(0.9, 3), huge))
    futures = [wheel.submit(request) for request in others]
    found = finish(wheel, futures)
    assert isinstance(bad.exception(timeout=0), AdapterError)
    later = Request(speech(0.9, 6), served(6))
    for transcript, request in zip([*found, *finish(wheel, [wheel.submit(later)])], [*others, later], strict=True):
        same(transcript, request)
    assert all(not tensor.any() for tensor in everything(wheel))


def test_a_failure_of_the_engine_itself_is_told_and_the_next_request_is_served(
    engine, finish, same, served, speech, monkeypatch
) -> None:
    wheel = engine(rows=2)
    with monkeypatch.context() as patch:
        patch.setattr(wheel._decoder, "next", lambda *_: 1 / 0)
        failed = wheel.submit(Request(speech(0.7, 1), served(1)))
        while wheel.turn():
            pass
    with pytest.raises(RunError, match="ask again"):
        failed.result(timeout=0)
    request = Request(speech(0.7, 2), None, language="ko")
    same(finish(wheel, [wheel.submit(request)])[0], request)


def test_a_request_that_cannot_be_encoded_does_not_concern_its_group(engine, finish, same, served, speech) -> None:
    wheel = engine(rows=4)
    good = [Request(speech(0.8, i), served(i)) for i in (1, 2)]
    lacking = {n: t for n, t in served(9).tensors.items() if "encoder" in n}
    foreign = {n.replace("k_proj", "nowhere"): t for n, t in lacking.items()}
    bad = wheel.submit(Request(speech(0.8, 9), replace(served(9), tensors=foreign)))
    found = finish(wheel, [wheel.submit(request) for request in good])
    assert "does not adapt" in str(bad.exception(timeout=0))
    for transcript, request in zip(found, good, strict=True):
        same(transcript, request)


def test_cancelled_and_late_requests_free_their_rows_in_the_middle(
    engine, finish, same, served, speech, monkeypatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(engine_module.time, "monotonic", lambda: now)
    wheel = engine(rows=3)
    cancelled = wheel.submit(Request(speech(0.9, 1), served(1)))
    late = wheel.submit(Request(speech(0.9, 2), served(2), deadline=now + 5))
    stays = Request(speech(0.9, 3), served(3))
    future = wheel.submit(stays)
    wheel.turn()
    wheel.turn()
    assert wheel.stats()["rows"] == 3
    assert cancelled.cancel()
    now += 10
    wheel.turn()
    assert wheel.stats()["rows"] == 1
    assert isinstance(late.exception(timeout=0), DeadlineError)
    same(finish(wheel, [future])[0], stays)
    stats = wheel.stats()
    assert (stats["finished"], stats["cancelled"], stats["failed"]) == (1, 1, 1)


def test_what_is_late_or_cancelled_in_the_queue_is_never_computed(engine, finish, served, speech, monkeypatch) -> None:
    now = 1000.0
    monkeypatch.setattr(engine_module.time, "monotonic", lambda: now)
    wheel = engine(rows=1)
    first = wheel.submit(Request(speech(0.6, 1), served(1)))
    late = wheel.submit(Request(speech(0.6, 2), served(2), deadline=now + 1))
    gone = wheel.submit(Request(speech(0.6, 3), served(3)))
    gone.cancel()
    wheel.turn()
    now += 5
    finish(wheel, [first])
    assert isinstance(late.exception(timeout=0), DeadlineError)
    assert wheel.stats()["finished"] == 1


def test_people_take_turns_however_much_one_of_them_asks(engine, served, speech) -> None:
    order: list[str] = []
    wheel = engine(rows=1)
    futures = [wheel.submit(Request(speech(0.6, i), served(1), person="eager", max_new_tokens=2)) for i in range(4)]
    futures.append(wheel.submit(Request(speech(0.6, 9), served(2), person="modest", max_new_tokens=2)))
    for name, future in zip(["e0", "e1", "e2", "e3", "m"], futures, strict=True):
        future.add_done_callback(lambda _, name=name: order.append(name))
    while wheel.turn():
        pass
    assert order == ["e0", "m", "e1", "e2", "e3"]


def test_a_full_queue_says_when_to_ask_again(engine, served, speech) -> None:
    wheel = engine(rows=1, waiting=3, waiting_each=2)
    for _ in range(2):
        wheel.submit(Request(speech(0.6), served(1), person="a"))
    with pytest.raises(BusyError) as of_one:
        wheel.submit(Request(speech(0.6), served(1), person="a"))
    wheel.submit(Request(speech(0.6), served(1), person="b"))
    with pytest.raises(BusyError):
        wheel.submit(Request(speech(0.6), served(1), person="c"))
    assert of_one.value.retry_after >= 1
    assert wheel.stats()["refused"] == 2


def test_what_could_only_fail_later_is_refused_at_once(engine, served, speech) -> None:
    wheel = engine(rows=2)
    foreign = served(1)
    foreign = replace(foreign, info=replace(foreign.info, base_fingerprint="whisper:other"))
    for request, error in (
        (Request(speech(30)), AudioError),
        (Request(np.zeros(0, np.float32)), AudioError),
        (Request(speech(0.5), beams=3), ConfigError),
        (Request(speech(0.5), foreign), AdapterMismatchError),
        (Request(speech(0.5), language="xx"), BaseModelError),
    ):
        with pytest.raises(error):
            wheel.submit(request)
    assert wheel.stats()["submitted"] == 0


def test_the_language_is_found_where_none_is_given(engine, finish, alone, speech) -> None:
    wheel = engine(rows=2)
    request = Request(speech(0.8, 3))
    found = finish(wheel, [wheel.submit(request)])[0]
    assert found.language in wheel.base.languages
    same_language = replace(request, language=found.language)
    assert alone(request)[1].tokens == found.tokens == alone(same_language)[1].tokens


@pytest.mark.parametrize("beams", [1, 2])
def test_partial_texts_grow_towards_the_transcript(engine, finish, served, speech, beams: int) -> None:
    wheel, seen = engine(rows=2), []
    done: list[int] = []
    future = wheel.submit(Request(speech(1.5, 5), served(5), beams=beams, on_text=seen.append))
    future.add_done_callback(lambda _: done.append(len(seen)))
    text = finish(wheel, [future])[0].text
    assert seen == sorted(seen, key=len)
    assert all(text.startswith(part) or len(part) > len(text) for part in seen)  # a loop is cut back at its end
    assert beams > 1 or (seen and done[0] >= 1)  # the first words come before the end


def test_a_listener_that_fails_concerns_nobody(engine, finish, same, served, speech) -> None:
    def fail(text: str) -> None:
        raise ValueError(text)

    wheel = engine(rows=2)
    requests = [Request(speech(0.9, i), served(i), on_text=fail if i == 1 else None) for i in (1, 2)]
    for transcript, request in zip(finish(wheel, [wheel.submit(r) for r in requests]), requests, strict=True):
        same(transcript, request)


def test_many_threads_ask_at_once(nano, same, served, speech) -> None:
    wheel = BatchEngine(nano, EngineSettings(rows=4, waiting=100))
    requests = [Request(speech(0.5 + 0.1 * (i % 4), i), served(i % 5), person=str(i % 3)) for i in range(12)]
    found: dict[int, object] = {}

    def ask(i: int) -> None:
        found[i] = wheel.submit(requests[i]).result(timeout=120)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wheel.close()
    for i, request in enumerate(requests):
        same(found[i], request)


def test_closing_fails_what_waits_and_refuses_what_comes(engine, served, speech) -> None:
    wheel = engine(rows=1)
    waiting = wheel.submit(Request(speech(0.5), served(1)))
    wheel.close()
    assert isinstance(waiting.exception(timeout=0), ClosedError)
    with pytest.raises(ClosedError):
        wheel.submit(Request(speech(0.5), served(1)))


@pytest.mark.parametrize("name", ["rows", "waiting", "waiting_each", "frames"])
def test_settings_that_serve_nobody_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        EngineSettings(**{name: 0})


def test_an_adapter_of_large_rank_is_refused_or_waits_and_leaves_no_larger_table(
    engine, finish, same, served, speech
) -> None:
    small, large = (Request(speech(0.7, rank), served(rank, rank=rank)) for rank in (2, 16))
    other = Request(speech(0.6, 3), served(3, "cross", rank=2, sites=("decoder.cross",)))
    needed = engine(rows=4)._table.bytes_for({large.adapter.kind})
    with pytest.raises(AdapterError, match=r"rank 16, \d+ maps\) needs .* bytes .* --table-mib"):
        engine(rows=4, table_bytes=needed - 1).submit(large)
    wheel = engine(rows=4, table_bytes=needed)
    futures = [wheel.submit(request) for request in (small, other)]
    wheel.turn()
    before = wheel.stats()["row_bytes"]
    futures.append(wheel.submit(large))
    assert futures[2].running() is False
    while not futures[0].done() or not futures[1].done():
        assert wheel._table.bytes <= needed
        wheel.turn()
    for transcript, request in zip(finish(wheel, futures), (small, other, large), strict=True):
        same(transcript, request)
    assert wheel.stats()["row_bytes"] < before
    assert wheel._table.bytes == 0


def test_where_memory_ends_while_one_person_enters_the_others_get_their_own(
    engine, finish, same, served, speech, monkeypatch
) -> None:
    others = [Request(speech(0.8, i), served(i), person=f"p{i}") for i in range(2)]
    late = Request(speech(0.7, 5), served(5, "cross", rank=7), beams=2)
    new_zeros = torch.Tensor.new_zeros

    def failing(tensor, *args, **kwargs):
        nonlocal left
        left -= 1
        if left == -1:
            raise torch.OutOfMemoryError("no memory")
        return new_zeros(tensor, *args, **kwargs)

    for at in (0, 5, 20, 60):
        wheel = engine(rows=4)
        futures = [wheel.submit(request) for request in others]
        wheel.turn()
        future = wheel.submit(late)
        left = at
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "new_zeros", failing)
            wheel.turn()
        assert left < 0
        for transcript, request in zip(finish(wheel, futures), others, strict=True):
            same(transcript, request)
        with pytest.raises(RunError, match="OutOfMemoryError"):
            future.result(timeout=0)
