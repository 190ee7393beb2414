"""Texts to token ids, the same for training, index building and the service.

Follows section 3.1 of the paper: a mention is read as its surface form and its
sentence, an entity as its name and its description. Only the ``tokenizers``
library is used; the ids equal those of Hugging Face's fast tokenizers under
``padding="max_length"`` and ``truncation="longest_first"``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
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
        If ``max_length`` leaves no room beside the special tokens, pairing or window is
        unknown, or no padding token is found.
    """

    def __init__(self, tokenizer: Tokenizer, config: TextConfig) -> None:
        if config.pairing not in ("literal", "tokenizer"):
            raise ModelError(f"TextConfig.pairing: {config.pairing!r} is not one of 'literal', 'tokenizer'")
        if config.window not in ("start", "mention"):
            raise ModelError(f"TextConfig.window: {config.window!r} is not one of 'start', 'mention'")
        self.config = config
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._literal = config.pairing == "literal"
        special = self._tokenizer.num_special_tokens_to_add(not self._literal)
        if config.max_length <= special:
            raise ModelError(
                f"TextConfig.max_length: {config.max_length} leaves no room for text; "
                f"the tokenizer adds {special} special tokens"
            )
        self._special = special
        self._words = Tokenizer.from_str(tokenizer.to_str())  # neither cuts nor pads
        self._words.no_truncation()
        self._words.no_padding()
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
        return self._batch(encodings, [bool(e.overflowing) for e in encodings])

    def mentions(self, mentions: Sequence[Mention]) -> TokenBatch:
        """Tokenise B mentions; of a sentence that is too long what ``config.window`` says."""
        encodings = self._encode([mention_pair(m) for m in mentions])
        truncated = [bool(e.overflowing) for e in encodings]
        if self.config.window == "mention":
            for i in [i for i, cut in enumerate(truncated) if cut]:
                first, second = mention_pair(mentions[i])
                encodings[i] = self._encode([(first, second[self._window(first, second)])])[0]
        return self._batch(encodings, truncated)

    def entities(self, entities: Sequence[Entity]) -> TokenBatch:
        """Tokenise N entities, as a call does."""
        return self([entity_pair(e) for e in entities])

    def spans(self, mention: Mention) -> tuple[TokenSpan, ...]:
        """Give the tokens of a mention, padding left out, with the characters that each stands for."""
        first, second = mention_pair(mention)
        _check([(first, second)])
        encoding = self._with_offsets(first, second)
        start = 0
        if self.config.window == "mention" and encoding.overflowing:
            window = self._window(first, second)
            start, second = window.start, second[window]
            encoding = self._with_offsets(first, second)
        span = _literal_span if self._literal else _pair_span
        found = [
            span(first, second, encoding.sequence_ids[i], encoding.offsets[i])
            for i, real in enumerate(encoding.attention_mask)
            if real
        ]
        return tuple(
            replace(s, start=s.start + start, stop=s.stop + start) if s.part == "sentence" else s
            for s in found
        )

    def _window(self, surface: str, sentence: str) -> slice:
        """The characters of a long sentence that are read: whole words, as many on both sides of the mention.

        The first place where the surface stands as words of its own counts, or else where it stands at all;
        a sentence without it is read from its start.
        """
        whole, place = slice(0, len(sentence)), _place(surface, sentence)
        read = surface + LITERAL_SEPARATOR if self._literal else surface
        room = self.config.max_length - self._special - len(self._uncut(read).ids)
        if place is None or room < 1:
            return whole
        words = self._uncut(sentence)
        own = [i for i, (a, b) in enumerate(words.offsets) if a < place.stop and b > place.start]
        if not own:
            return whole
        count, ids = len(words.ids), words.word_ids
        first = max(0, min(own[0] - max(0, room - len(own)) // 2, count - room))
        last = min(count, first + room)
        while 0 < first < own[0] and ids[first] == ids[first - 1]:
            first += 1
        while own[-1] + 1 < last < count and ids[last] == ids[last - 1]:
            last -= 1
        return slice(words.offsets[first][0], words.offsets[last - 1][1])

    def _uncut(self, text: str) -> Encoding:
        return self._words.encode(text, add_special_tokens=False)

    def _with_offsets(self, first: str, second: str) -> Encoding:
        if self._literal:
            return self._tokenizer.encode(first + LITERAL_SEPARATOR + second)
        return self._tokenizer.encode(first, second)

    def _batch(self, encodings: Sequence[Encoding], truncated: Sequence[bool]) -> TokenBatch:
        return TokenBatch(
            input_ids=self._stack([e.ids for e in encodings]),  # (B, L)
            attention_mask=self._stack([e.attention_mask for e in encodings]),  # (B, L)
            token_type_ids=self._stack([e.type_ids for e in encodings]),  # (B, L)
            truncated=np.array(truncated, dtype=np.bool_),  # (B,)
        )

    def _encode(self, pairs: Sequence[tuple[str, str]]) -> list[Encoding]:
        _check(pairs)
        if self._literal:
            return self._tokenizer.encode_batch_fast([a + LITERAL_SEPARATOR + b for a, b in pairs])
        return self._tokenizer.encode_batch_fast(list(pairs))

    def _stack(self, rows: list[list[int]]) -> NDArray[np.int64]:
        return np.array(rows, dtype=np.int64).reshape(len(rows), self.config.max_length)  # (B, L)


def _place(surface: str, sentence: str) -> slice | None:
    """Where a sentence has a surface, as words of its own if it can be; None where it has not."""
    if not surface:
        return None
    wanted = re.escape(surface)
    for pattern in (rf"(?<!\w){wanted}(?!\w)", wanted):
        if found := re.search(pattern, sentence, re.IGNORECASE):
            return slice(*found.span())
    return None


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
