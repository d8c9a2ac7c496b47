"""Multipart forms in memory, with bounds: nothing that somebody sent is ever written to a disk, not even for a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from fl.serving.http.problems import ProblemError

MAX_FIELDS = 64
MAX_FIELD_BYTES = 2**18
Fields = TypeVar("Fields", bound=BaseModel)


class _MemoryParser(MultiPartParser):
    """Starlette's parser spools parts above 1 MiB to a temporary file; here the bound is that of the whole body."""

    spool_max_size = 2**40


@dataclass(frozen=True)
class Form:
    """What a form holds: texts and contents of files by field. File names are not kept."""

    texts: dict[str, list[str]]
    files: dict[str, list[bytes]]

    def file(self, name: str) -> bytes | None:
        """The only file of a field; :class:`ProblemError` for two."""
        found = self.files.get(name, [])
        if len(found) > 1:
            raise ProblemError("invalid-field", f"{name}: {len(found)} files; send one")
        return found[0] if found else None

    def required_file(self, name: str) -> bytes:
        """As :meth:`file`, and there must be one."""
        found = self.file(name)
        if found is None:
            raise ProblemError("invalid-field", f"{name}: is missing; send it as a part with a file name")
        return found


async def read_form(request: Request, *, max_files: int) -> Form:
    """The form of a request, in memory. Raises :class:`ProblemError` ``bad-request`` for a body that is none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ProblemError("bad-request", f"the body is {kind[:80] or 'of no type'}; multipart/form-data is expected")
    parser = _MemoryParser(
        request.headers,
        request.stream(),  # type: ignore[arg-type]
        max_files=max_files,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    form = Form({}, {})
    try:
        for name, value in (await parser.parse()).multi_items():
            if isinstance(value, UploadFile):
                form.files.setdefault(name, []).append(await value.read())
                await value.close()
            else:
                form.texts.setdefault(name, []).append(value)
    except (MultiPartException, FormParserError, UnicodeDecodeError, LookupError) as error:
        # A message of the parser may quote a part of the body; it goes to the sender alone.
        raise ProblemError("bad-request", f"the body is no multipart form: {str(error)[:120]}") from None
    return form


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, at most ``limit`` bytes; :class:`ProblemError` ``too-large`` beyond."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise ProblemError(
                "too-large", f"the body has more than the {limit:,} bytes that are taken here", close=True
            )
    return bytes(data)


def parse_fields(kind: type[Fields], form: Form) -> Fields:
    """The text fields of ``form`` that ``kind`` knows (others are ignored, as OpenAI's clients send more), checked.

    Raises :class:`ProblemError` ``invalid-field`` that names the field and what is allowed; it does not repeat the value.
    """
    values: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        key = field.alias or name
        found = form.texts.get(key) or form.texts.get(key.removesuffix("[]"))
        if not found:
            continue
        if get_origin(field.annotation) in (list, tuple, set, frozenset):
            values[key] = found
        elif len(found) > 1:
            raise ProblemError("invalid-field", f"{key}: is given {len(found)} times; send it once")
        else:
            values[key] = found[0]
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ProblemError(
            "invalid-field", describe_invalid(error.errors(include_input=False, include_url=False))
        ) from None


def describe_invalid(errors: Sequence[Any]) -> str:
    """``field: reason`` of at most five errors of pydantic."""
    return "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in errors[:5])


def form_document(
    kind: type[BaseModel], files: dict[str, str], required: Sequence[str], many: Sequence[str] = ()
) -> dict[str, Any]:
    """The OpenAPI ``requestBody`` of a form with the text fields of ``kind`` and ``files`` with their descriptions."""
    schema = kind.model_json_schema(by_alias=True)
    for name, text in files.items():
        binary = {"type": "string", "format": "binary", "description": text}
        schema["properties"][name] = {"type": "array", "minItems": 1, "items": binary} if name in many else binary
    schema["required"] = [*schema.get("required", []), *required]
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
