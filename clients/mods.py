"""Client mods: functions around the handling of a message, in Flower's form ``(message, context, call_next) -> message``."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable

from fl.adapters.split import role_of
from fl.arms import trained_arm
from fl.config import EDGE
from fl.privacy.guard import check_reply, named_devices
from fl.wire import JOB, SHARED, Job, read_settings


def guard_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let a reply out only if it holds shared tensors and counts of the devices that were asked.

    It stands first in the ClientApp's list of mods, hence last before the wire. What was agreed is read from the request
    before anything inside can touch it: the shared tensors are those that the aggregator sent, by name and shape, and a
    name that the arm's split calls private is refused even if the aggregator asks for it.
    """
    if message.metadata.message_type == MessageType.QUERY:
        reply = call_next(message, context)
        if reply.has_content():
            check_reply(reply.content, shapes={}, private=(), devices=named_devices(reply.content))
        return reply
    job = Job.from_record(message.content.config_records[JOB])
    config = read_settings(message.content)
    arm = trained_arm(job.arm, config)
    asked = message.content.array_records.get(SHARED, ArrayRecord())
    shapes = {name: tuple(array.shape) for name, array in asked.items()}
    private = {name for name in shapes if arm is not None and role_of(arm.split, name) == "private"}
    reply = call_next(message, context)
    if reply.has_content():
        edge = config.federation.aggregation == EDGE
        check_reply(reply.content, shapes=shapes, private=private, devices=set(job.devices), edge=edge)
    return reply
