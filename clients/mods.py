"""Client mods: functions around the handling of a message, in Flower's form ``(message, context, call_next) -> message``.

Both are for Idiolect's own messages (:mod:`fl.protocol.wire`): a message without a job is refused, one of Flower's examples included.
"""

import logging
from collections.abc import Iterable

from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from clients.node import node_worker
from fl.adapters.split import CONTROL, OWN, role_of, tensor_kind
from fl.algorithms.arms import Arm, trained_arm
from fl.core.errors import DemandError, GuardError, RunError
from fl.protocol.guard import check_reply, check_secure_step, kept_counts, named_devices
from fl.protocol.node import NodeConfig
from fl.protocol.reply import Exchange, ReplySchema, participants_of
from fl.protocol.wire import JOB, SECURE_STEP, SHARED, Job, read_settings
from fl.settings.config import RunConfig
from fl.settings.names import LAST_PREFIX
from fl.tasks.table import TASKS

log = logging.getLogger("idiolect.client")
SECURE_QUERY = f"{MessageType.QUERY}.{SECURE_STEP}"
KINDS = (
    MessageType.TRAIN,
    MessageType.EVALUATE,
    MessageType.QUERY,
    SECURE_QUERY,
)  # Flower takes "train.default" for "train" too
SPEAKABLE = (DemandError, GuardError)  # their texts name settings and tensors, never what a person said or a path


def discreet_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Keep the text of an exception on a deployed device: it may quote a line of a manifest, and Flower would send it on.

    The aggregator learns the type. A simulation has no secrets from its own process and keeps the text.
    """
    try:
        return call_next(message, context)
    except SPEAKABLE:
        raise
    except Exception as error:
        if "device-id" not in context.node_config:  # not parsed: what is wrong with it may be the error
            raise
        log.exception("a message was not answered")
        raise RunError(f"{type(error).__name__} on the device, whose log says more") from None


def guard_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let a reply out only if it holds updates of shared tensors and counts of the devices that were asked.

    It stands first in the ClientApp's list of mods, hence last before the wire. What was agreed is read from the request
    before anything inside can touch it: the shared tensors are those that the aggregator sent, by name and shape, and a
    name that the arm's split calls private is refused even if the aggregator asks for it. What leaves is a new message with
    the checked records, so nothing else of the reply does.
    """
    node, kind = NodeConfig.parse(context.node_config), message.metadata.message_type
    if kind not in KINDS:
        raise GuardError("nothing was done: a message of a kind that no aggregator sends")
    if kind == MessageType.QUERY:
        content = _answer(call_next(message, context))
        check_reply(content, ReplySchema(), private=(), devices=node.own or named_devices(content))
        return Message(content, reply_to=message)
    job = Job.from_record(message.content.config_records[JOB])
    if kind == SECURE_QUERY:
        content = _answer(call_next(message, context))
        check_secure_step(content, job.devices)
        return Message(content, reply_to=message)
    config = read_settings(message.content)
    arm = trained_arm(job.arm, config)
    asked = message.content.array_records.get(SHARED, ArrayRecord())
    shapes = {name: tuple(array.shape) for name, array in asked.items()}
    private = _private(arm, shapes, config, node, job.run) if arm is not None else set()
    private |= kept_counts(node.detail(config), TASKS[config.task].main)
    schema = ReplySchema()
    if kind == MessageType.TRAIN:
        _keep_gates(shapes, node)
        schema = ReplySchema(shapes, Exchange.of(config, arm, job.phase), participants_of(message.content))
    content = _answer(call_next(message, context))
    check_reply(content, schema, private=private, devices=set(job.devices))
    return Message(content, reply_to=message)


def _answer(reply: Message) -> RecordDict:
    """What a reply holds. One without records would be an error with a free text, and nothing here makes any."""
    if not reply.has_content():
        raise GuardError("nothing was sent: an answer without records")
    return reply.content


def _keep_gates(names: Iterable[str], node: NodeConfig) -> None:
    """Raise :class:`DemandError` if a deployed device is to share gates, whatever the run's split says, unless its owner allows it."""
    gates = [name for name in names if tensor_kind(name) == "gate"]
    if gates and node.deployed and not node.share_gates:
        raise DemandError(
            f"the run would share {len(gates)} gates, and gates do not leave this device: it takes no part. Set split = 'gates' or "
            "gated-arms = 'personalized' in the run, or let the owner start the SuperNode with --node-config \"share-gates=true\""
        )


def _private(arm: Arm, names: Iterable[str], config: RunConfig, node: NodeConfig, run: str) -> set[str]:
    """Which of the names the arm's split calls private. A split by last layers is one of the whole adapter's names."""
    if not arm.split.startswith(LAST_PREFIX):
        return {name for name in names if role_of(arm.split, name) == "private"}
    private = node_worker(config, node, run).split(arm).private
    return {name for name in names if name.startswith(OWN) or name.removeprefix(CONTROL) in private}
