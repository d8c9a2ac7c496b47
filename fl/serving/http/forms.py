"""Multipart forms as pydantic models, in memory and with bounds: nothing of a request is ever written to a disk."""

import re
from collections import defaultdict
from functools import cache
from typing import Any, Self

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from fl.serving.http.problems import ProblemError, describe_invalid

FORM_TYPE = "multipart/form-data"
_ITEM = re.compile(r"[^\s,\[\]\"']+")
_INDEX = re.compile(r"\[\d*\]$")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")
MAX_FIELDS = 64
MAX_FIELD_BYTES = 2**18


class _MemoryParser(MultiPartParser):
    """Starlette's parser spools parts above 1 MiB to a temporary file; here the bound is that of the whole body."""

    spool_max_size = 2**40


class FormModel(BaseModel):
    """A form: ``bytes`` are files, whose names are not kept, all else is text.

    A text that is empty counts as not given, as does the empty part that a browser sends for a file that was not chosen. A list
    may come as several fields, in one with commas or as JSON, under its name, ``name[]`` or ``name[0]``. Fields that the form
    does not have are ``ignored``.
    """

    _ignored: tuple[str, ...] = ()

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of fields and query parameters that had no effect; ``?`` for those that are no plain word."""
        return self._ignored

    @classmethod
    @cache
    def form_schema(cls) -> dict[str, Any]:
        """The JSON schema of the form, from which :meth:`read` takes which fields are files, lists, or required."""
        return cls.model_json_schema(by_alias=True)

    @classmethod
    def document(cls) -> dict[str, Any]:
        """What OpenAPI says of the request."""
        return {"requestBody": {"required": True, "content": {FORM_TYPE: {"schema": cls.form_schema()}}}}

    @classmethod
    async def read(cls, request: Request, *, max_files: int) -> Self:
        """The form of a request. Raises :class:`ProblemError`: ``bad-request`` for a body that is none, ``invalid-field`` that
        names the field and what is allowed; it does not repeat the value."""
        parts = await _read_parts(request, max_files)
        values: dict[str, Any] = {}
        for key, field in cls.form_schema()["properties"].items():
            found = parts.pop(key.removesuffix("[]"), [])
            binary = field.get("items", field).get("format") == "binary"
            kind, other, how = (bytes, "text", "with") if binary else (str, "file", "without")
            misplaced = not all(isinstance(value, kind) for value in found)
            if misplaced or (not found and key in cls.form_schema()["required"]):
                what = f"is a {other}" if misplaced else "is missing"
                raise ProblemError("invalid-field", f"{key}: {what}; send it as a part {how} a file name")
            many = field["type"] == "array"
            if many and not binary:
                found = list(dict.fromkeys(_ITEM.findall(",".join(map(str, found)))))
            if len(found) > 1 and not many:
                raise ProblemError("invalid-field", f"{key}: is given {len(found)} times; send it once")
            if found:
                values[key] = found if many else found[0]
        try:
            form = cls.model_validate(values)
            unused = {*parts, *request.query_params}
            form._ignored = tuple(sorted({name if _NAME.fullmatch(name) else "?" for name in unused}))
            return form
        except ValidationError as error:
            errors = error.errors(include_input=False, include_url=False)
            raise ProblemError("invalid-field", describe_invalid(errors)) from None


async def _read_parts(request: Request, max_files: int) -> dict[str, list[str | bytes]]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != FORM_TYPE:
        raise ProblemError("bad-request", f"the body is {kind[:80] or 'of no type'}; {FORM_TYPE} is expected")
    parser = _MemoryParser(
        request.headers,
        request.stream(),  # type: ignore[arg-type]
        max_files=max_files,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    parts = defaultdict[str, list[str | bytes]](list)
    try:
        form = await parser.parse()
        for name, part in form.multi_items():
            value = part if isinstance(part, str) else await part.read()
            if value.strip() if isinstance(part, str) else value or part.filename:
                parts[_INDEX.sub("", name)].append(value)
        await form.close()
    except (MultiPartException, FormParserError, UnicodeDecodeError, LookupError) as error:
        if str(error).startswith("Too many files"):
            raise ProblemError("bad-request", f"the body has more than {max_files} files: send fewer") from None
        # A message of the parser may quote a part of the body; it goes to the sender alone.
        raise ProblemError("bad-request", f"the body is no multipart form: {str(error)[:120]}") from None
    return parts
