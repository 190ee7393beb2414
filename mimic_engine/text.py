"""Texts to token ids, the same for training, index building and the service.

Follows section 3.1 of the paper: a mention is read as its surface form and its
sentence, an entity as its name and its description. Only the ``tokenizers``
library is used; the ids equal those of Hugging Face's fast tokenizers under
``padding="max_length"`` and ``truncation="longest_first"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from mimic_engine.config import TextConfig
from mimic_engine.errors import InvalidInputError, ModelError
from mimic_engine.types import Entity, Mention, TokenBatch, TokenSpan

LITERAL_SEPARATOR = " [SEP] "
# Tried in this order where neither the config nor the tokenizer names its padding token:
# BERT-like, RoBERTa-like, and CLIP (which pads with its end-of-text token).
_USUAL_PAD_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>")


def mention_pair(mention: Mention) -> tuple[str, str]:
    """The two texts of a mention: surface form and sentence."""
    return mention.mention, mention.sentence


def entity_pair(entity: Entity) -> tuple[str, str]:
    """The two texts of an entity: name and description."""
    return entity.name, entity.description


class TextPreprocessor:
    """Tokenises pairs of texts, cut and padded to exactly ``config.max_length`` tokens.

    The padding token is, in this order: ``config.pad_token``; the one that the
    tokenizer's own ``padding`` section names; the first of ``[PAD]``,
    ``<pad>``, ``<|endoftext|>`` in its vocabulary.

    Parameters
    ----------
    tokenizer : read, not changed: a copy is configured.
    config : length, pairing, and optionally the padding token.

    Raises
    ------
    ModelError
        If ``max_length`` leaves no room beside the special tokens, the pairing is
        unknown, or no padding token is found.
    """

    def __init__(self, tokenizer: Tokenizer, config: TextConfig) -> None:
        if config.pairing not in ("literal", "tokenizer"):
            raise ModelError(f"TextConfig.pairing: {config.pairing!r} is not one of 'literal', 'tokenizer'")
        self.config = config
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._literal = config.pairing == "literal"
        special = self._tokenizer.num_special_tokens_to_add(not self._literal)
        if config.max_length <= special:
            raise ModelError(
                f"TextConfig.max_length: {config.max_length} leaves no room for text; "
                f"the tokenizer adds {special} special tokens"
            )
        pad_token, pad_id = _padding(self._tokenizer, config)
        self._tokenizer.enable_truncation(config.max_length, strategy="longest_first")
        self._tokenizer.enable_padding(length=config.max_length, pad_id=pad_id, pad_token=pad_token)

    @classmethod
    def open(cls, tokenizer_json: Path, config: TextConfig) -> TextPreprocessor:
        """Read a ``tokenizer.json``.

        Raises
        ------
        ModelError
            If the file is missing or is not a tokenizer, and as in the constructor.
        """
        try:
            text = Path(tokenizer_json).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"tokenizer {tokenizer_json} cannot be read: {error}") from error
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception for a file it cannot parse
            raise ModelError(f"tokenizer {tokenizer_json} is damaged: {error}") from error
        return cls(tokenizer, config)

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> TokenBatch:
        """Tokenise B pairs.

        Returns
        -------
        TokenBatch
            ``input_ids``, ``attention_mask``, ``token_type_ids`` int64 (B, L);
            ``truncated`` bool (B,): the pair had more than L tokens.

        Raises
        ------
        InvalidInputError
            If a text is not a string, or holds a lone surrogate (no Unicode character).
        """
        encodings = self._encode(pairs)
        return TokenBatch(
            input_ids=self._stack([e.ids for e in encodings]),  # (B, L)
            attention_mask=self._stack([e.attention_mask for e in encodings]),  # (B, L)
            token_type_ids=self._stack([e.type_ids for e in encodings]),  # (B, L)
            truncated=np.array([bool(e.overflowing) for e in encodings], dtype=np.bool_),  # (B,)
        )

    def spans(self, mention: Mention) -> tuple[TokenSpan, ...]:
        """Give the tokens of a mention, padding left out, with the characters that each stands for."""
        first, second = mention_pair(mention)
        _check([(first, second)])
        if self._literal:
            encoding = self._tokenizer.encode(first + LITERAL_SEPARATOR + second)
            span = _literal_span
        else:
            encoding = self._tokenizer.encode(first, second)
            span = _pair_span
        return tuple(
            span(first, second, encoding.sequence_ids[i], encoding.offsets[i])
            for i, real in enumerate(encoding.attention_mask)
            if real
        )

    def _encode(self, pairs: Sequence[tuple[str, str]]) -> list[Encoding]:
        _check(pairs)
        if self._literal:
            return self._tokenizer.encode_batch_fast([a + LITERAL_SEPARATOR + b for a, b in pairs])
        return self._tokenizer.encode_batch_fast(list(pairs))

    def _stack(self, rows: list[list[int]]) -> NDArray[np.int64]:
        return np.array(rows, dtype=np.int64).reshape(len(rows), self.config.max_length)  # (B, L)


def _pair_span(first: str, second: str, sequence: int | None, offsets: tuple[int, int]) -> TokenSpan:
    """The span of a token of a tokenizer's own pair encoding."""
    if sequence is None:
        return TokenSpan("", "special", 0, 0)
    text, part = ((first, "mention"), (second, "sentence"))[sequence]
    return TokenSpan(text[slice(*offsets)], part, *offsets)


def _literal_span(first: str, second: str, sequence: int | None, offsets: tuple[int, int]) -> TokenSpan:
    """The span of a token of the two texts with the literal separator between them."""
    start, stop = offsets
    shift = len(first) + len(LITERAL_SEPARATOR)
    if sequence is None or stop <= start:
        return TokenSpan("", "special", 0, 0)
    if stop <= len(first):
        return TokenSpan(first[start:stop], "mention", start, stop)
    if start >= shift:
        return TokenSpan(second[start - shift : stop - shift], "sentence", start - shift, stop - shift)
    return TokenSpan("", "special", 0, 0)


def _padding(tokenizer: Tokenizer, config: TextConfig) -> tuple[str, int]:
    """Padding token and its id, by the rule of :class:`TextPreprocessor`."""
    own = tokenizer.padding
    if config.pad_token is not None:
        candidates: tuple[str, ...] = (config.pad_token,)
    elif own is not None:
        return str(own["pad_token"]), int(own["pad_id"])
    else:
        candidates = _USUAL_PAD_TOKENS
    for token in candidates:
        pad_id = tokenizer.token_to_id(token)
        if pad_id is not None:
            return token, pad_id
    raise ModelError(f"TextConfig.pad_token: none of {list(candidates)} is in the tokenizer's vocabulary")


def _check(pairs: Sequence[tuple[str, str]]) -> None:
    for row, pair in enumerate(pairs):
        for part, text in zip(("first", "second"), pair, strict=True):
            where = f"{part} text of pair {row}"
            if not isinstance(text, str):
                raise InvalidInputError(f"{where}: must be a string, got {type(text).__name__}", field="text")
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise InvalidInputError(
                    f"{where}: character {error.start} is a lone surrogate, not a Unicode character",
                    field="text",
                ) from error
