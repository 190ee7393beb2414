"""Explanations agree with the PyTorch units, add up, and point at the right characters."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from mimic_engine import Linker, Mention
from mimic_engine.engine.explain import attention_of
from mimic_engine.model.checkpoint import load_checkpoint
from mimic_engine.text import TextPreprocessor, entity_pair, mention_pair
from mimic_engine.types import EntityArrays, MentionArrays

TEXTS = [("a b", "c a b d"), ("j", ""), ("a b c d e f", "g h i j a b c d")]  # short, shorter, cut


@pytest.fixture(scope="module")
def linker(tiny_model, tiny_index):
    linker = Linker.open(tiny_model, tiny_index, threads=1)
    yield linker
    linker.close()


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint):
    return load_checkpoint(tiny_checkpoint)


def unfolded_attention(checkpoint, tokenizer_json, mention, entities):
    """Column means (N, L) of TGLU's attention as the PyTorch unit computes it."""
    text = TextPreprocessor.open(tokenizer_json, checkpoint.model.config.text)
    matcher = checkpoint.model.matcher

    def tokens(pairs):
        batch = text(pairs)
        ids = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
        states = checkpoint.model.encoder.text_backbone(*map(torch.from_numpy, ids)).tokens
        return matcher.text_tokens_layernorm(states)

    with torch.no_grad():
        query = matcher.tglu.fc_query(tokens([entity_pair(e) for e in entities]))  # (N, L, D)
        key = matcher.tglu.fc_key(tokens([mention_pair(mention)]))[0]  # (L, D)
        attention = (query @ key.T / math.sqrt(query.shape[-1])).softmax(-1)  # (N, L, L)
    return attention.mean(1).numpy()  # (N, L)


@pytest.mark.parametrize("texts", TEXTS)
@pytest.mark.parametrize("with_picture", [False, True])
def test_attention_is_that_of_the_unit(linker, checkpoint, tiny_model, tiny_picture, texts, with_picture):
    mention = Mention(*texts, tiny_picture if with_picture else None)
    [result] = linker.link([mention], 7, explain=True)
    rows = linker.index.rows([c.id for c in result.candidates])
    entities = [linker.index.entity(row) for row in rows]
    wanted = unfolded_attention(checkpoint, tiny_model / "tokenizer.json", mention, entities)
    for candidate, expected in zip(result.candidates, wanted, strict=True):
        explanation = candidate.explanation
        assert_allclose(explanation.attention, expected[: len(result.tokens)], atol=1e-5)
        assert explanation.padding_attention == pytest.approx(expected[len(result.tokens) :].sum(), abs=1e-5)
        assert sum(explanation.attention) + explanation.padding_attention == pytest.approx(1, abs=1e-5)
        assert sum(explanation.contributions.values()) == pytest.approx(candidate.score, abs=1e-5)
        assert set(explanation.contributions) == set(candidate.units)


@pytest.mark.parametrize("texts", TEXTS)
def test_tokens_point_at_their_characters(linker, texts):
    [result] = linker.link([Mention(*texts)], 1, explain=True)
    parts = dict(zip(("mention", "sentence"), texts, strict=True))
    for token in result.tokens:
        if token.part == "special":
            assert (token.text, token.start, token.stop) == ("", 0, 0)
        else:
            assert parts[token.part][token.start : token.stop] == token.text != ""
    letters = "".join(t.text for t in result.tokens)
    if not result.text_truncated:
        assert letters == "".join(texts).replace(" ", "")
    assert len(result.tokens) <= 9


def test_nothing_is_explained_unless_asked_for(linker):
    [result] = linker.link([Mention("a", "b")], 3)
    assert result.tokens is None
    assert all(c.explanation is None for c in result.candidates)


def test_explaining_changes_no_score(linker):
    mention = Mention("a b", "c a b d")
    [plain], [explained] = linker.link([mention], 5), linker.link([mention], 5, explain=True)
    assert [(c.id, c.score) for c in plain.candidates] == [(c.id, c.score) for c in explained.candidates]


def test_a_model_without_tglu_has_no_attention():
    assert attention_of(MentionArrays(cmfu=np.ones((1, 4))), EntityArrays(cmfu=np.ones((2, 4)))) is None
