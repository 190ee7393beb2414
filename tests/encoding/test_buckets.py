"""Shortened texts give the scores of padded ones, where the model masks padding, and only there."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimic_engine.config import EncoderConfig, ImageConfig, MatcherConfig, ModelConfig, TextConfig
from mimic_engine.encoding.buckets import bucket, cut, length_buckets, pad_length, pad_rows
from mimic_engine.encoding.onnx import OnnxSession
from mimic_engine.encoding.session import ShortenedTexts
from mimic_engine.encoding.torch import TorchSession
from mimic_engine.export.to_onnx import ExportOptions, export_model
from mimic_engine.kernels.reference import NumpyScorer
from mimic_engine.model.checkpoint import load_checkpoint
from mimic_engine.model.units import Mimic
from mimic_engine.types import TokenBatch
from tests.rounding import model_bound

LENGTH, SIZE = 29, 32  # buckets 8, 16, 29
LONGEST_SUM = 3 * 16 * 16  # over the values of a patch
MATCHERS = {
    "masked": MatcherConfig(hidden=8, mask_padding=True),
    "published": MatcherConfig(hidden=8),
    "no text unit": MatcherConfig(hidden=8, tglu=False),
}


@pytest.fixture(scope="module", params=MATCHERS)
def both(request, tiny_checkpoint, tmp_path_factory):
    """A model of long texts, exported, and as it is."""
    base = load_checkpoint(tiny_checkpoint)
    torch.manual_seed(3)
    config = ModelConfig(
        TextConfig(max_length=LENGTH), ImageConfig(size=SIZE), EncoderConfig(), MATCHERS[request.param]
    )
    model = Mimic(config, base.model.encoder).eval()
    with torch.no_grad():
        for p in model.matcher.parameters():
            p += 0.3 * torch.randn_like(p)
    out = tmp_path_factory.mktemp("long") / "model"
    export_model(model, base.tokenizer_json, out, ExportOptions(("fp32",)))
    return request.param, OnnxSession.open(out, threads=1), model


def tokens(lengths, seed=0):
    mask = (np.arange(LENGTH) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(seed).integers(5, 15, mask.shape) * mask
    return TokenBatch(ids, mask, np.zeros_like(ids), np.zeros(len(ids), bool))


@pytest.mark.parametrize("lengths", [[2], [8], [9, 3], [16, 1, 7], [29, 5], [17], [3] * 33 + [29]])
def test_scores_are_those_of_padded_texts(both, lengths):
    name, session, model = both
    pixels = np.random.default_rng(1).standard_normal((len(lengths), 3, SIZE, SIZE)).astype(np.float32)
    scorer = NumpyScorer(session.constants)
    found, expected = (
        scorer.score(
            s.fold_mentions(s.encode_text(tokens(lengths)), s.encode_image(pixels)),
            s.fold_entities(s.encode_text(tokens(lengths[::-1], 2)), s.encode_image(pixels[::-1].copy())),
        ).total
        for s in (session, TorchSession(model))
    )
    sides = [(tokens(lengths), pixels), (tokens(lengths[::-1], 2), pixels[::-1].copy())]
    allowed = 2 * model_bound(model, LONGEST_SUM, lambda model: {"total": unfolded(model, *sides)})["total"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed, err_msg=name)


def unfolded(model, *sides):
    """Scores in float64 of mentions and entities, texts and pixels of each."""
    features = [
        model.encode(
            *map(torch.from_numpy, (t.input_ids, t.attention_mask, t.token_type_ids)),
            torch.from_numpy(p).double(),
        )
        for t, p in sides
    ]
    return model(*features).total


def test_only_models_that_ignore_padding_cut(both):
    name, session, _ = both
    assert isinstance(session._graphs["text_encoder"], ShortenedTexts) == (name != "published")
    text = session.encode_text(tokens([3, 5]))
    assert text.tokens.shape == (2, LENGTH, 16)
    assert (text.tokens[:, 8:] == 0).all() == (name != "published")


@given(st.integers(1, 80), st.data())
def test_a_cut_keeps_every_real_token(longest, data):
    lengths = data.draw(st.lists(st.integers(0, longest), min_size=1, max_size=4))
    mask = (np.arange(longest) < np.array(lengths)[:, None]).astype(np.int64)
    feeds = cut({"a": mask * 7}, mask, longest)
    assert feeds["a"].sum() == 7 * sum(lengths)
    assert feeds["a"].shape[1] in length_buckets(longest)
    assert feeds["a"].shape[1] == bucket(max(1, *lengths, 1), length_buckets(longest))


def test_padding_repeats_rows_and_fills_lengths():
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(pad_rows(a, 4), a[[0, 1, 1, 1]])
    assert pad_rows(a, 2) is a
    states = a.reshape(1, 2, 3)
    assert pad_length(states, 2) is states
    np.testing.assert_array_equal(pad_length(states, 4)[0], np.vstack([a, np.zeros((2, 3))]))
