"""A grid in one process behaves as Flower's own do."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from sim.backends.serial import SerialGrid, ThreadGrid


def echo(message: Message, context: Context) -> Message:
    seen = dict(context.node_config)
    return Message(
        RecordDict({"seen": ConfigRecord({**seen, "asked": message.metadata.dst_node_id})}), reply_to=message
    )


def ask(node: int) -> Message:
    return Message(RecordDict(), dst_node_id=node, message_type=MessageType.TRAIN)


MakeGrid = Callable[..., SerialGrid]
KINDS: list[type[SerialGrid]] = [SerialGrid, ThreadGrid]


@pytest.fixture(params=KINDS)
def grid(request: pytest.FixtureRequest) -> Iterator[MakeGrid]:
    made: list[SerialGrid] = []

    def make(app: Any, nodes: int = 3) -> SerialGrid:
        made.append(request.param(app, nodes))
        return made[-1]

    yield make
    for one in made:
        if isinstance(one, ThreadGrid):
            one.close()


def test_it_is_a_grid_of_flower_with_as_many_nodes_as_asked(grid: MakeGrid) -> None:
    assert isinstance(grid(echo), Grid)
    assert list(grid(echo).get_node_ids()) == [1, 2, 3]


def test_each_node_knows_its_part_of_the_devices(grid: MakeGrid) -> None:
    replies = list(grid(echo).send_and_receive([ask(2), ask(3), ask(1)]))
    assert [dict(r.content["seen"]) for r in replies] == [  # type: ignore[arg-type]
        {"partition-id": n - 1, "num-partitions": 3, "asked": n} for n in (2, 3, 1)
    ]
    assert [r.metadata.src_node_id for r in replies] == [2, 3, 1]


def test_a_failing_client_is_an_error_reply_and_the_others_answer(grid: MakeGrid) -> None:
    def fragile(message: Message, context: Context) -> Message:
        if message.metadata.dst_node_id == 2:
            raise KeyError("gate")
        return echo(message, context)

    first, second, third = grid(fragile).send_and_receive([ask(1), ask(2), ask(3)])
    assert second.has_error()
    assert not second.has_content()
    assert second.error.code == 2
    assert "KeyError: 'gate'" in str(second.error.reason)
    assert second.metadata.src_node_id == 2
    assert first.has_content()
    assert third.has_content()


def test_a_node_that_does_not_exist_is_an_error_reply(grid: MakeGrid) -> None:
    (reply,) = grid(echo).send_and_receive([ask(9)])
    assert reply.has_error()


def test_the_end_of_the_process_is_not_a_clients_failure(grid: MakeGrid) -> None:
    def interrupted(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(grid(interrupted).send_and_receive([ask(1)]))


def test_replies_are_pulled_once_by_the_ids_of_their_messages(grid: MakeGrid) -> None:
    own = grid(echo)
    ids = list(own.push_messages([ask(1), ask(2)]))
    assert len(set(ids)) == 2
    (second,) = own.pull_messages(ids[1:])
    assert second.metadata.src_node_id == 2
    assert second.metadata.reply_to_message_id == ids[1]
    assert [r.metadata.src_node_id for r in own.pull_messages(ids)] == [1]
    assert list(own.pull_messages(ids)) == []


def test_nodes_with_threads_answer_side_by_side_and_always_in_their_own() -> None:
    meeting = threading.Barrier(2, timeout=60)

    def wait(message: Message, context: Context) -> Message:
        meeting.wait()  # one after the other they would never meet
        where = ConfigRecord({"thread": threading.get_ident()})
        return Message(RecordDict({"where": where}), reply_to=message)

    own = ThreadGrid(wait, 2)  # type: ignore[arg-type]
    first, second = ([r.content["where"]["thread"] for r in own.send_and_receive([ask(1), ask(2)])] for _ in range(2))  # type: ignore[index]
    own.close()
    assert first == second
    assert len({threading.get_ident(), *first}) == 3


def test_a_grid_that_is_closed_interrupts_a_node_that_has_not_answered() -> None:
    begun, ended = threading.Event(), threading.Event()

    def endless(message: Message, context: Context) -> Message:
        begun.set()
        try:
            while True:
                time.sleep(0.01)
        finally:
            ended.set()

    own = ThreadGrid(endless, 1)  # type: ignore[arg-type]
    own.push_messages([ask(1)])
    assert begun.wait(60)
    own.close()
    assert ended.wait(60)
