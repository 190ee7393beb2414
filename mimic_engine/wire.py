"""Bodies of the HTTP API: msgspec structs that decode the hot routes and describe them in OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from mimic_engine.errors import InvalidInputError
from mimic_engine.types import Explanation, Mode, TokenSpan

T = TypeVar("T")


class ErrorDetail(msgspec.Struct, omit_defaults=True, kw_only=True):
    """An error: a code for programs, a message for people, the field, and the id of a 500."""

    code: str
    message: str
    field: str | None = None
    id: str | None = None


class ErrorBody(msgspec.Struct):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class FilterBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which entities may be the answer: those with one of the ids, one of the types, or of both."""

    ids: list[str] | None = None
    types: list[str] | None = None


class OptionFields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How to link. In a batch, what a mention does not say is taken from the batch.

    ``mode``: "certified" (default) and "exact" give the same answer, the first for less work; "coded" gives
    an estimate where the index has codes.
    ``return_parts``: the scores of the units in every candidate (default true: they cost nothing).
    ``explain``: the tokens that each candidate's description attended to, and each unit's share of the score.
    ``nil``: say whether the best score lies below the threshold: ``nil_threshold``, else the model's own.
    ``names``: count what the mention shares with the names of entities, and how popular they are, where the
    model weighs them (default true); false gives the model's score alone.
    """

    top_k: int | None = None
    filter: FilterBody | None = None
    mode: Mode | None = None
    return_parts: bool | None = None
    explain: bool | None = None
    nil: bool | None = None
    nil_threshold: float | None = None
    names: bool | None = None

    def lend(self, other: OptionFields) -> None:
        """Give another what it does not say itself."""
        for name in OptionFields.__struct_fields__:
            if getattr(other, name) is None:
                setattr(other, name, getattr(self, name))


class MentionBody(OptionFields, forbid_unknown_fields=True, kw_only=True):
    """One mention and how to link it: an element of a batch, a line of a stream.

    ``image`` is base64 of a JPEG, PNG or WebP file; ``image_url`` says where to fetch one.
    """

    mention: str
    sentence: str
    image: bytes | None = None
    image_url: str | None = None


class LinkBody(MentionBody, forbid_unknown_fields=True, kw_only=True):
    """Body of ``POST /v1/link``: a mention, options, and its deadline in milliseconds."""

    timeout_ms: float | None = None


class BatchBody(OptionFields, forbid_unknown_fields=True, kw_only=True):
    """Body of ``POST /v1/link:batch``. The options hold where a mention names none."""

    mentions: list[msgspec.Raw]  # decoded one by one: a bad mention fails alone
    timeout_ms: float | None = None


class ScoreBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of ``POST /v1/score``: a mention and the ids of the entities to score, in any order."""

    mention: str
    sentence: str
    image: bytes | None = None
    image_url: str | None = None
    candidates: list[str]
    return_parts: bool | None = None
    explain: bool | None = None
    names: bool | None = None
    timeout_ms: float | None = None


class CandidateAnswer(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One entity: its total score, its probability in a calibrated model, and what was asked for beyond."""

    id: str
    name: str
    score: float
    probability: float | None = None
    units: Mapping[str, float] | None = None
    explanation: Explanation | None = None


class LinkAnswer(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Ranked entities of a mention, best first (of ``/v1/score``: in the order asked for).

    ``nil`` is true where the best score lies below ``nil_threshold``; both are there if nil was asked for.
    ``nil_probability`` is that of none of the ranked entities, in a calibrated model.
    """

    candidates: list[CandidateAnswer]
    text_truncated: bool
    has_image: bool
    mode: str
    entities_scored: int
    nil_probability: float | None = None
    nil: bool | None = None
    nil_threshold: float | None = None
    tokens: Sequence[TokenSpan] | None = None


class BatchAnswer(msgspec.Struct):
    """Answer of ``POST /v1/link:batch``: a result or an error for each mention, in order."""

    results: list[Any]  # LinkAnswer | ErrorBody: not a union msgspec can describe, see components()


class EntityBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of ``PUT /v1/entities/{id}``: the whole entity.

    ``images`` are base64 of JPEG, PNG or WebP files; the model uses the first, or more if it was made so.
    ``aliases`` are other names; ``popularity`` is how often the entity is meant at all, a number from 0 on,
    null where that is not known.
    """

    name: str
    description: str = ""
    type: str = ""
    images: list[bytes] = []
    aliases: list[str] = []
    popularity: float | None = None


class EntityAnswer(msgspec.Struct):
    """Answer of ``GET /v1/entities/{id}``; the images themselves stay where they are.

    ``popularity`` is null where it is not known.
    """

    id: str
    name: str
    description: str
    type: str
    image_count: int
    aliases: Sequence[str]
    popularity: float | None


class ExampleBody(msgspec.Struct):
    """A mention to try; ``image`` is the address of its image, relative to the service's root."""

    mention: str
    sentence: str
    image: str | None


class ExamplesBody(msgspec.Struct):
    """Answer of ``GET /v1/examples``."""

    examples: list[ExampleBody]


class StatusAnswer(msgspec.Struct):
    """Answer of the probes and of ``/admin/drain``."""

    status: str


class ReloadAnswer(msgspec.Struct):
    """Whether the index is another one now, and its size."""

    reloaded: bool
    entities: int


_LINK = msgspec.json.Decoder(LinkBody)
_MENTION = msgspec.json.Decoder(MentionBody)
_BATCH = msgspec.json.Decoder(BatchBody)
_ENTITY = msgspec.json.Decoder(EntityBody)
_SCORE = msgspec.json.Decoder(ScoreBody)


def decode_link(raw: bytes) -> LinkBody:
    """Decode the body of ``/v1/link``; InvalidInputError names the field."""
    return _decode(_LINK, raw)


def decode_mention(raw: bytes | msgspec.Raw) -> MentionBody:
    """Decode one element of ``mentions`` or line of a stream; InvalidInputError names the field."""
    return _decode(_MENTION, raw)


def decode_batch(raw: bytes) -> BatchBody:
    """Decode the body of ``/v1/link:batch``; InvalidInputError names the field."""
    return _decode(_BATCH, raw)


def decode_score(raw: bytes) -> ScoreBody:
    """Decode the body of ``/v1/score``; InvalidInputError names the field."""
    return _decode(_SCORE, raw)


def decode_entity(raw: bytes) -> EntityBody:
    """Decode the body of ``PUT /v1/entities/{id}``; InvalidInputError names the field."""
    return _decode(_ENTITY, raw)


def _decode(decoder: msgspec.json.Decoder[T], raw: bytes | msgspec.Raw) -> T:
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _invalid(error, "body") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"body: not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidInputError("body: JSON is nested too deep") from error


def _invalid(error: msgspec.ValidationError, whole: str) -> InvalidInputError:
    message, _, path = str(error).partition(" - at `")
    field = path.removesuffix("`").removeprefix("$").removeprefix(".")
    return InvalidInputError(f"{field or whole}: {message}", field=field or None)


_REPEATED = {"filter.ids": "ids", "filter.types": "types"}


def form_to_body(fields: Sequence[tuple[str, str]], image: bytes | None) -> LinkBody:
    """Read the text fields of a multipart form; ``filter.ids`` and ``filter.types`` may repeat."""
    values: dict[str, Any] = {}
    for name, value in fields:
        if name in _REPEATED:
            values.setdefault("filter", {}).setdefault(_REPEATED[name], []).append(value)
        elif name in values:
            raise InvalidInputError(f"{name}: given twice", field=name)
        elif name == "image":
            raise InvalidInputError(
                "image: must be a file part with a file name, got a text field", field=name
            )
        elif name == "filter":
            raise InvalidInputError(f"filter: in a form its fields are {', '.join(_REPEATED)}", field=name)
        else:
            values[name] = value
    try:
        body = msgspec.convert(values, LinkBody, strict=False)  # numbers arrive as text
    except msgspec.ValidationError as error:
        raise _invalid(error, "form") from error
    body.image = image
    return body


def components() -> dict[str, Any]:
    """Schemas of everything above, for ``components.schemas`` of the OpenAPI document."""
    types: list[Any] = [LinkBody, MentionBody, BatchBody, ScoreBody, LinkAnswer, EntityBody, EntityAnswer]
    types += [StatusAnswer, ReloadAnswer, ExamplesBody, ErrorBody]
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schemas["BatchBody"]["properties"]["mentions"]["items"] = ref("MentionBody")
    either = {"anyOf": [ref("LinkAnswer"), ref("ErrorBody")]}
    schemas["BatchAnswer"] = {
        "title": "BatchAnswer",
        "description": str(BatchAnswer.__doc__),
        "type": "object",
        "properties": {"results": {"type": "array", "items": either}},
        "required": ["results"],
    }
    schemas["LinkForm"] = _form(schemas["LinkBody"], schemas["FilterBody"])
    return schemas


def _form(body: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """Schema of the form of ``/v1/link``: the fields of the JSON body, those of the filter one by one."""
    fields = body["properties"] | {f"filter.{name}": schema for name, schema in chosen["properties"].items()}
    fields["image"] = {"type": "string", "format": "binary"}
    del fields["filter"]
    given = {name: schema.get("anyOf", [schema])[0] for name, schema in fields.items()}  # a form has no null
    return {"title": "LinkForm", "type": "object", "required": body["required"], "properties": given}


def ref(name: str) -> dict[str, str]:
    """Point to a schema of :func:`components`."""
    return {"$ref": f"#/components/schemas/{name}"}
