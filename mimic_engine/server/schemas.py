"""What goes over the wire: msgspec structs that decode the hot routes and describe them in OpenAPI.

Answers are the project's own dataclasses (:class:`mimic_engine.types.LinkResult`), encoded as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from mimic_engine.errors import InvalidInputError
from mimic_engine.server.errors import ErrorBody
from mimic_engine.types import LinkResult

T = TypeVar("T")


class MentionBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One mention. ``image`` is base64 of a JPEG, PNG or WebP file; ``candidates`` restricts the answer."""

    mention: str
    sentence: str
    image: bytes | None = None
    top_k: int | None = None
    candidates: list[str] | None = None


class LinkBody(MentionBody, forbid_unknown_fields=True, kw_only=True):
    """Body of ``POST /v1/link``: a mention and its deadline in milliseconds."""

    timeout_ms: float | None = None


class BatchBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of ``POST /v1/link:batch``. ``top_k`` and ``candidates`` hold where a mention names none."""

    mentions: list[msgspec.Raw]  # decoded one by one: a bad mention fails alone
    top_k: int | None = None
    candidates: list[str] | None = None
    timeout_ms: float | None = None


class BatchResult(msgspec.Struct):
    """Answer of ``POST /v1/link:batch``: a result or an error for each mention, in order."""

    results: list[Any]  # LinkResult | ErrorBody: not a union msgspec can describe, see components()


class EntityBody(msgspec.Struct):
    """Answer of ``GET /v1/entities/{id}``; the images themselves stay where they are."""

    id: str
    name: str
    description: str
    type: str
    image_count: int


class ExampleBody(msgspec.Struct):
    """A mention to try; ``image`` is the address of its picture, relative to the service's root."""

    mention: str
    sentence: str
    image: str | None


class ExamplesBody(msgspec.Struct):
    """Answer of ``GET /v1/examples``."""

    examples: list[ExampleBody]


class HealthBody(msgspec.Struct):
    """Answer of the probes."""

    status: str


_LINK = msgspec.json.Decoder(LinkBody)
_MENTION = msgspec.json.Decoder(MentionBody)
_BATCH = msgspec.json.Decoder(BatchBody)


def decode_link(raw: bytes) -> LinkBody:
    """Decode the body of ``/v1/link``; InvalidInputError names the field."""
    return _decode(_LINK, raw)


def decode_mention(raw: bytes | msgspec.Raw) -> MentionBody:
    """Decode one element of ``mentions``; InvalidInputError names the field."""
    return _decode(_MENTION, raw)


def decode_batch(raw: bytes) -> BatchBody:
    """Decode the body of ``/v1/link:batch``; InvalidInputError names the field."""
    return _decode(_BATCH, raw)


def _decode(decoder: msgspec.json.Decoder[T], raw: bytes | msgspec.Raw) -> T:
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        field = path.removesuffix("`").removeprefix("$").removeprefix(".")
        raise InvalidInputError(f"{field or 'body'}: {message}", field=field or None) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"body: not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidInputError("body: JSON is nested too deep") from error


def form_to_body(fields: Sequence[tuple[str, str]], image: bytes | None) -> LinkBody:
    """Read the text fields of a multipart form; ``candidates`` may repeat, the others may not."""
    values: dict[str, Any] = {}
    for name, value in fields:
        if name == "candidates":
            values.setdefault(name, []).append(value)
        elif name in values:
            raise InvalidInputError(f"{name}: given twice", field=name)
        elif name == "image":
            raise InvalidInputError(
                "image: must be a file part with a file name, got a text field", field=name
            )
        else:
            values[name] = value
    try:
        body = msgspec.convert(values, LinkBody, strict=False)  # numbers arrive as text
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        field = path.removesuffix("`").removeprefix("$.")
        raise InvalidInputError(f"{field or 'form'}: {message}", field=field or None) from error
    body.image = image
    return body


def components() -> dict[str, Any]:
    """Schemas of everything above, for ``components.schemas`` of the OpenAPI document."""
    types = [LinkBody, MentionBody, BatchBody, BatchResult, LinkResult, EntityBody, ExamplesBody]
    types += [HealthBody, ErrorBody]
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schemas["BatchBody"]["properties"]["mentions"]["items"] = ref("MentionBody")
    schemas["BatchResult"]["properties"]["results"]["items"] = {
        "anyOf": [ref("LinkResult"), ref("ErrorBody")]
    }
    return schemas


def ref(name: str) -> dict[str, str]:
    """Point to a schema of :func:`components`."""
    return {"$ref": f"#/components/schemas/{name}"}
