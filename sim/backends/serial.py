"""A Flower ``Grid`` inside one process: each message is handled when it is sent, one after the other.

For tests and debugging: no Ray, no network, ordinary stack traces, and the same numbers as any other backend.
"""

import logging
import secrets
from collections.abc import Iterable
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
        self._replies: dict[str, Message] = {}
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
        """Handle the messages now; their replies wait to be pulled."""
        ids = []
        for message in messages:
            self._count += 1
            message.metadata.__dict__["_message_id"] = str(self._count)
            ids.append(str(self._count))
            self._replies[ids[-1]] = self._handle(message)
        return ids

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
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull."""
        return self.pull_messages(self.push_messages(messages))
