"""Flower ``Grid``s inside one process: messages are handled one after the other, or side by side in a thread for each node.

No Ray, no network, and the same numbers as any other backend. One after the other is for tests and debugging: ordinary stack traces.
"""

import ctypes
import logging
import secrets
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import get_ident
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

log = logging.getLogger("idiolect.sim")
CLIENT_APP_ERROR = 2  # Flower's code for an exception in the ClientApp


class SerialGrid(Grid):
    """``nodes`` simulated nodes that answer with ``client_app``; node ``i`` hosts every ``nodes``-th device."""

    def __init__(self, client_app: ClientApp, nodes: int = 2) -> None:
        # Flower stamps messages with the identity of the running task, which only its own runtimes set. A grid is a run.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, secrets.randbits(62), SUPERLINK_NODE_ID
        self.client_app = client_app
        self._contexts = {
            i + 1: Context(
                run_id=TaskIdentity.run_id,
                node_id=i + 1,
                node_config={"partition-id": i, "num-partitions": nodes},
                state=RecordDict(),
                run_config={},
            )
            for i in range(nodes)
        }
        self._replies: dict[str, Future[Message]] = {}
        self._count = 0

    def set_run(self, run: Any) -> None:
        """Nothing to set: there is one run."""

    @property
    def run(self) -> Any:
        """There is no run record in one process."""
        raise NotImplementedError("a SerialGrid has no run record")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one node."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the nodes, from 1."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Handle the messages, or begin to; their replies wait to be pulled."""
        ids = []
        for message in messages:
            self._count += 1
            message.metadata.__dict__["_message_id"] = str(self._count)
            ids.append(str(self._count))
            self._replies[ids[-1]] = self._begin(message)
        return ids

    def _begin(self, message: Message) -> Future[Message]:
        done: Future[Message] = Future()
        done.set_result(self._handle(message))
        return done

    def _handle(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        try:
            reply = self.client_app(message, self._contexts[node])
        except Exception as error:  # a node's failure is an error reply, as on every other backend
            log.warning("node %s failed: %s: %s", node, type(error).__name__, error)
            reply = Message(Error(code=CLIENT_APP_ERROR, reason=f"{type(error).__name__}: {error}"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = node
        return reply

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to the given messages."""
        return [self._replies.pop(i).result() for i in message_ids if i in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull."""
        return self.pull_messages(self.push_messages(messages))


class ThreadGrid(SerialGrid):
    """``nodes`` nodes with a thread each. Threads take turns in Python and not in torch, where nearly all of a step's time is spent.

    Close it at the end: a thread that still has a message is interrupted, as by the keyboard.
    """

    def __init__(self, client_app: ClientApp, nodes: int = 2) -> None:
        super().__init__(client_app, nodes)
        self._idents: dict[int, int] = {}
        self._busy: set[int] = set()
        self._threads = {
            node: ThreadPoolExecutor(1, f"node-{node}", self._begin_thread, (node,)) for node in self._contexts
        }

    def _begin_thread(self, node: int) -> None:
        import torch

        torch.set_num_threads(1)  # as the processes of other backends; a message that is alone takes more
        self._idents[node] = get_ident()

    def _begin(self, message: Message) -> Future[Message]:
        thread = self._threads.get(message.metadata.dst_node_id)
        return super()._begin(message) if thread is None else thread.submit(self._handle, message)

    def _handle(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        self._busy.add(node)
        try:
            return super()._handle(message)
        finally:
            self._busy.discard(node)

    def close(self) -> None:
        """End the threads."""
        for thread in self._threads.values():
            thread.shutdown(wait=False, cancel_futures=True)
        for node in list(self._busy):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._idents[node]), ctypes.py_object(KeyboardInterrupt)
            )
