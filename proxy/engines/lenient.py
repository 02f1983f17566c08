"""An event or a reply read field by field, where its JSON is not quite as it should be.

The strict decoders of `proxy.engines.wire` are the fast way; what they refuse comes
here, and one odd field no longer takes the usage beside it along: a field that cannot
be read is as if it were absent. Read are content as typed parts, numbers as strings
or whole floats, lone surrogates, bytes that are no UTF-8, control characters, NaN.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin

import msgspec

from proxy.engines.wire import MAX_COUNT, MAX_DIGITS, Delta, json_of
from proxy.wire.facts import well_formed

S = TypeVar("S", bound=msgspec.Struct)

TEXT_PARTS = ("text", "output_text")


def decode_leniently(data: bytes, kind: type[S]) -> S | None:
    """What can be read of a JSON object as a `kind`, None where it is no object."""
    fields = json_of(data)
    return _struct(kind, fields) if isinstance(fields, dict) else None


def count_of(value: object) -> int | None:
    """A count in any spelling of a whole number; None for everything else."""
    if isinstance(value, str) and len(value) <= MAX_DIGITS:
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not (0 <= value <= MAX_COUNT and value == int(value)):
        return None
    return int(value)


def text_of(value: object) -> str | None:
    """A text that can be written down again, None for what is no text."""
    return well_formed(value) if isinstance(value, str) else None


def _struct(kind: type[S], fields: Mapping[str, Any]) -> S:
    if kind is Delta:
        fields = _with_parts_told_apart(fields)
    found = {}
    for info in msgspec.structs.fields(kind):
        value = fields.get(info.name)
        if value is not None and (read := _read(info.type, value)) is not None:
            found[info.name] = read
    return kind(**found)


def _read(kind: Any, value: Any) -> Any:
    """`value` as a field of that type holds it, None where it cannot."""
    if get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not types.NoneType)
    if get_origin(kind) is typing.Annotated:
        kind = get_args(kind)[0]
    if kind is Any:
        return value
    if kind is str:
        return _reason(value) if isinstance(value, dict) else text_of(value)
    if kind is bool:
        return value is True
    if kind is int:
        return count_of(value)
    if kind is float:
        return _finite(value)
    if get_origin(kind) is list:
        if not isinstance(value, list):
            return None
        (item,) = get_args(kind)
        if item is int:
            return value
        return [
            _struct(item, element) for element in value if isinstance(element, dict)
        ]
    return _struct(kind, value) if isinstance(value, dict) else None


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _reason(value: Mapping[str, Any]) -> str | None:
    """The type of a finish reason that is an object, as SGLang's is."""
    return text_of(value.get("type"))


def _with_parts_told_apart(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Content in typed parts as its text, and the rest as what is hidden."""
    content = fields.get("content")
    if content is None or isinstance(content, str):
        return fields
    text, has_hidden = "", False
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            text += part
        elif isinstance(part, dict) and part.get("type", "text") in TEXT_PARTS:
            text += part["text"] if isinstance(part.get("text"), str) else ""
        else:
            has_hidden = has_hidden or bool(part)
    told = {**fields, "content": text}
    return told | {"reasoning": True} if has_hidden else told
