"""The table of codecs: half precision, 8 and 4 bits, the largest entries only, and products of those.

A codec turns one tensor into bytes and back; codec and shape are agreed beforehand and not sent. n entries, k kept ones,
blocks of 1,024 entries each with its own scale, m the largest absolute value of a block (for ``top-k`` of kept entries):

| codec | bytes | largest error | sums of encodings |
| --- | --- | --- | --- |
| ``fp32`` | 4 n | 0 | yes |
| ``fp16`` | 2 n | 2^-11 abs(x), or 2^-25 if that is more | yes |
| ``int8`` | n + 4 ceil(n / 1024) | m / 254 | no: each block of each device has its own scale |
| ``int4`` | ceil(n / 2) + 4 ceil(n / 1024) | m / 14 | no |
| ``int8:LIMIT``, ``int4:LIMIT`` | n, ceil(n / 2) | LIMIT / 254, LIMIT / 14 | yes: all have the same step; abs(x) <= LIMIT |
| ``top-k:SHARE`` | 4 + 8 k, k = ceil(SHARE n) | the kept ones 0; norm of the rest <= sqrt(1 - k / n) of the whole | no: other places |
| ``top-k:SHARE+int8`` and so on | 4 + 4 k + those of k entries | kept ones as that codec's; the rest as above | no |

int8 is a quarter of fp32 plus 0.4 % for the scales (one float32 for 1,024 entries); ``int8:LIMIT`` is a quarter exactly.
With error feedback (Seide et al. 2014; Karimireddy et al. 2019) a device adds what was lost to its next update:
:mod:`clients.updates`.
"""

from collections.abc import Callable

from fl.codecs.base import Codec, CompressionError
from fl.codecs.entries import fp16, fp32, int4, int8
from fl.codecs.topk import top_k
from fl.core.registry import Registry

MakeCodec = Callable[[str, Codec | None], Codec]
"""From what stands behind the colon ("" for nothing) and the codec behind the plus. Raises :class:`CompressionError`."""

CODECS: Registry[MakeCodec] = Registry(
    "codec", {"fp32": fp32, "fp16": fp16, "int8": int8, "int4": int4, "top-k": top_k}
)


def make_codec(name: str) -> Codec:
    """The codec of a name as in the table above; :class:`CompressionError` lists the known ones."""
    first, plus, second = name.partition("+")
    kind, colon, argument = first.partition(":")
    if kind not in CODECS or (colon and not argument):
        raise CompressionError(
            f"codec {name!r} is unknown: use {', '.join(CODECS)}, a limit as int8:0.1, or top-k:0.1+int8"
        )
    inner = make_codec(second) if plus else None
    try:
        return CODECS[kind](argument, inner)
    except CompressionError as error:
        raise CompressionError(f"codec {name!r}: {error}") from error
