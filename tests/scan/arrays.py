"""Random folded arrays of any shape, mask and storage, and the float64 reference of their scores."""

from dataclasses import dataclass, field

import numpy as np

from mimic_engine.kernels.reference import scores_ref
from mimic_engine.types import EntityArrays, FoldConstants, MentionArrays, Scores
from tests.rounding import bound, shares

UNITS = ("tglu", "vdlu", "cmfu")
HALF = ("text_cls", "tglu_query", "tglu_cls", "vdlu_query", "vdlu_key", "concat", "cmfu")


@dataclass(frozen=True)
class Shape:
    """What to draw. ``spread`` is the values' part that tokens do not share: large = no pointed cone."""

    mentions: int = 3
    entities: int = 41
    mention_tokens: int = 40
    entity_tokens: int = 40
    width: int = 96
    text: int = 64
    units: tuple[str, ...] = UNITS
    storage: str = "float32"  # or float16; or int8, which is float16 with int8 queries
    mask: bool = False
    logits: float = 1.0  # scale of queries and of keys
    spread: float = 1.0
    seed: int = 0


@dataclass
class Pairs:
    shape: Shape
    mentions: MentionArrays = field(init=False)
    entities: EntityArrays = field(init=False)
    constants: FoldConstants = field(init=False)

    def __post_init__(self) -> None:
        s, self._rng = self.shape, np.random.default_rng(self.shape.seed)
        self._beta, self._gate = (
            self._normal(2, s.width),
            self._normal(2, s.width) / s.width**0.5,
        )  # of the duals
        gate, norm = self._normal(2).tolist(), _dot(self._beta, self._beta).tolist()
        self.constants = FoldConstants(s.width, s.units, 1e-5, (gate[0], gate[1]), (norm[0], norm[1]))
        mention: dict[str, np.ndarray] = {}
        entity: dict[str, np.ndarray] = {}
        if "tglu" in s.units:
            mention |= self._mention_text()
            entity |= self._entity_text()
        for side, rows in ((mention, s.mentions), (entity, s.entities)):
            if "vdlu" in s.units:
                side |= self._roles(rows, int(side is mention))
            for name in {"concat", "cmfu"}.intersection(s.units):
                side[name] = self._normal(rows, s.width) / s.width**0.5
        stored = {k: self._stored(k, v) for k, v in entity.items()}
        if s.storage == "int8" and "tglu" in s.units:
            peak = np.maximum(np.abs(entity["tglu_query"]).max(-1), 1e-30)  # (N, L)
            stored["tglu_query"] = np.rint(entity["tglu_query"] / peak[..., None] * 127).astype(np.int8)
            stored["tglu_query_scale"] = (peak / 127).astype(np.float32)
        self.mentions = MentionArrays(**{k: np.ascontiguousarray(v, np.float32) for k, v in mention.items()})
        self.entities = EntityArrays(**stored)

    def reference(self) -> Scores:
        """Scores in float64 of the values as stored."""
        mention = {k: v.astype(np.float64) for k, v in self.mentions.items()}
        return scores_ref(MentionArrays(**mention), EntityArrays(**wide(self.entities)), self.constants)

    def bound(self) -> dict[str, float]:
        """How far from :meth:`reference` float32 may be, by unit and in "total"."""
        shape = self.shape
        terms = max(shape.width, shape.text, shape.mention_tokens)

        def once(draw: np.random.Generator | None) -> dict[str, np.ndarray]:
            sides = []
            for side in ({k: v.astype(np.float64) for k, v in self.mentions.items()}, wide(self.entities)):
                exact = {k for k in side if "mask" in k} if draw is not None else set(side)
                sides.append(
                    {k: v if k in exact else v * shares(v.shape, terms, draw) for k, v in side.items()}
                )
            found = scores_ref(MentionArrays(**sides[0]), EntityArrays(**sides[1]), self.constants)
            return {"total": found.total, **found.units}

        return bound(once)

    def _stored(self, name: str, values: np.ndarray) -> np.ndarray:
        half = self.shape.storage != "float32" and name in HALF
        return np.ascontiguousarray(values, np.float16 if half else np.float32)

    def _normal(self, *shape: int) -> np.ndarray:
        return self._rng.normal(size=shape)

    def _mention_text(self) -> dict[str, np.ndarray]:
        s = self.shape
        rows, tokens = s.mentions, s.mention_tokens
        value = self._normal(rows, 1, s.width) + s.spread * self._normal(rows, tokens, s.width)
        out = {
            "text_cls": self._normal(rows, s.text) / s.text**0.5,
            "tglu_key": s.logits * self._normal(rows, tokens, s.width),
            "tglu_value": value - value.mean(-1, keepdims=True),
        }
        if s.mask:
            out["tglu_key_mask"] = np.arange(tokens) < self._lengths(rows, tokens)
        return out

    def _entity_text(self) -> dict[str, np.ndarray]:
        s = self.shape
        rows, tokens = s.entities, s.entity_tokens
        vector = self._normal(rows, s.width)
        out = {
            "text_cls": self._normal(rows, s.text) / s.text**0.5,
            "tglu_query": s.logits * self._normal(rows, tokens, s.width) / s.width**0.5,
            "tglu_cls": vector - vector.mean(-1, keepdims=True),
            "tglu_bias": self._normal(rows),
        }
        if s.mask:
            lengths = self._lengths(rows, tokens)
            out["tglu_token_weight"] = (np.arange(tokens) < lengths) / lengths
        return out

    def _lengths(self, rows: int, tokens: int) -> np.ndarray:
        return self._rng.integers(1, tokens + 1, (rows, 1))

    def _roles(self, rows: int, dual: int) -> dict[str, np.ndarray]:
        """Query role in one dual and key role in the other, with the scalars that fit the vectors."""
        vectors = self._normal(2, rows, 3, self.shape.width) / 2
        query, key = vectors.astype(np.float16).astype(np.float64)  # exact in any storage
        (u, cq, aq), (cv, av, k) = query.swapaxes(0, 1), key.swapaxes(0, 1)
        beta, gate = self._beta[dual], self._gate[dual]
        of_query = [
            _dot(aq, u),
            u @ beta,
            _dot(cq, cq),
            aq @ gate,
            _dot(aq, aq),
            aq @ beta,
            self._normal(rows),
        ]
        beta, gate = self._beta[1 - dual], self._gate[1 - dual]
        of_key = [_dot(cv, cv), av @ gate, _dot(av, av), av @ beta, _dot(av, k), k @ beta, _dot(k, k)]
        return {
            "vdlu_query": query,
            "vdlu_query_scalars": np.stack(of_query, 1),
            "vdlu_key": key,
            "vdlu_key_scalars": np.stack(of_key, 1),
        }


def wide(entities: EntityArrays) -> dict[str, np.ndarray]:
    """The arrays in float64, int8 queries times their scales."""
    out = {k: v.astype(np.float64) for k, v in entities.items()}
    if "tglu_query_scale" in out:
        out["tglu_query"] *= out.pop("tglu_query_scale")[..., None]
    return out


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1)
