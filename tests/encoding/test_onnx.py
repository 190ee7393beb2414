"""The ONNX Runtime session and scorer against their PyTorch twins; batches of any size; what they refuse."""

import numpy as np
import pytest
import torch

from mimic_engine.encoding.buckets import ROWS_PER_RUN
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.encoding.onnx import OnnxSession
from mimic_engine.encoding.torch import TorchSession
from mimic_engine.errors import InvalidInputError, ModelError
from mimic_engine.kernels.reference import NumpyScorer
from mimic_engine.model.checkpoint import load_checkpoint
from mimic_engine.scan.blocks import OnnxScorer
from mimic_engine.types import EntityArrays, TextFeatures, TokenBatch
from tests.rounding import model_bound

LENGTH, SIZE = 9, 32


@pytest.fixture(scope="module")
def session(tiny_model):
    return OnnxSession.open(tiny_model, threads=1)


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load_checkpoint(tiny_checkpoint).model


@pytest.fixture(scope="module")
def twin(model):
    return TorchSession(model)


def tokens(rows, seed=0):
    ids = np.random.default_rng(seed).integers(2, 50, (rows, LENGTH))
    mask = (np.arange(LENGTH) < np.arange(rows)[:, None] % LENGTH + 1).astype(np.int64)
    return TokenBatch(ids, mask, np.zeros_like(ids), np.zeros(rows, bool))


def pixels(rows, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, 3, SIZE, SIZE)).astype(np.float32)


def test_says_what_model_it_is(session, twin, tiny_model):
    assert session.model_hash == twin.model_hash
    assert session.constants == twin.constants
    assert (session.text_config, session.image_config) == (twin.text_config, twin.image_config)
    assert session.tokenizer_json == tiny_model / "tokenizer.json"


@pytest.mark.parametrize("rows", [1, 3, ROWS_PER_RUN + 1])
def test_equals_pytorch(session, twin, model, rows):
    text, image = session.encode_text(tokens(rows)), session.encode_image(pixels(rows))
    expected_text, expected_image = twin.encode_text(tokens(rows)), twin.encode_image(pixels(rows))
    np.testing.assert_array_equal(text.mask, expected_text.mask)
    allowed = rounding(model, tokens(rows), pixels(rows))
    for name, found, expected in (
        ("text.cls", text.cls, expected_text.cls),
        ("text.tokens", text.tokens, expected_text.tokens),
        ("image.cls", image.cls, expected_image.cls),
        ("image.tokens", image.tokens, expected_image.tokens),
    ):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=2 * allowed[name], err_msg=name)
    for fold in ("fold_mentions", "fold_entities"):
        found = dict(getattr(session, fold)(expected_text, expected_image).items())
        expected = dict(getattr(twin, fold)(expected_text, expected_image).items())
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            scale = max(1.0, float(np.abs(values).max()))
            np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5 * scale, err_msg=name)


def rounding(model, texts, pictures):
    """How far float32 may be off in what the encoders give."""
    ids = (texts.input_ids, texts.attention_mask, texts.token_type_ids)

    def text(model):
        out = model.encoder.text_backbone(*map(torch.from_numpy, ids))
        return {"text.cls": out.cls, "text.tokens": out.tokens}

    def image(model):
        out = model.encoder.project_image(model.encoder.image_backbone(torch.from_numpy(pictures).double()))
        return {"image.cls": out.cls, "image.tokens": out.tokens}

    # The longest sums: over the inner width of a layer, and over the values of a patch.
    return model_bound(model, 24, text) | model_bound(model, 3 * 16 * 16, image)


def test_no_rows_give_empty_arrays_of_the_right_widths(session):
    text, image = session.encode_text(tokens(0)), session.encode_image(pixels(0))
    assert (text.cls.shape, text.tokens.shape, text.mask.shape) == ((0, 16), (0, LENGTH, 16), (0, LENGTH))
    assert (image.cls.shape, image.tokens.shape) == ((0, 8), (0, 5, 8))
    empty, one = session.fold_entities(text, image), folded(session, 1)[1]
    assert {n: a.shape[1:] for n, a in empty.items()} == {n: a.shape[1:] for n, a in one.items()}
    assert empty.rows == 0


def folded(session, mentions, entities=1):
    men = session.encode_text(tokens(mentions)), session.encode_image(pixels(mentions))
    ent = session.encode_text(tokens(entities, seed=1)), session.encode_image(pixels(entities, seed=1))
    return session.fold_mentions(*men), session.fold_entities(*ent)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 1), (7, 13)])
def test_scorer_equals_numpy(session, tiny_model, shape):
    mentions, entities = folded(session, *shape)
    found = OnnxScorer.open(tiny_model).score(mentions, entities)
    expected = NumpyScorer(session.constants).score(mentions, entities)
    assert found.total.shape == shape and list(found.units) == list(expected.units)
    np.testing.assert_allclose(found.total, expected.total, rtol=1e-5, atol=1e-5)
    for name, scores in expected.units.items():
        np.testing.assert_allclose(found.units[name], scores, rtol=1e-5, atol=1e-5)


def test_scorer_widens_half_precision_and_takes_slices(session, tiny_model):
    mentions, entities = folded(session, 3, 11)
    half = EntityArrays(**{n: a.astype(np.float16) if a.ndim > 1 else a for n, a in entities.items()})
    found = OnnxScorer.open(tiny_model).score(mentions, half.block(2, 9))
    expected = NumpyScorer(session.constants).score(mentions, half.block(2, 9))
    np.testing.assert_allclose(found.total, expected.total, rtol=1e-5, atol=1e-5)


def test_scorer_of_no_entities_is_empty(session, tiny_model):
    mentions, entities = folded(session, 2, 3)
    scores = OnnxScorer.open(tiny_model).score(mentions, entities.block(0, 0))
    assert scores.total.shape == (2, 0) and list(scores.units) == list(session.constants.units)


@pytest.mark.parametrize("wrong", [(3, LENGTH + 1), (3,), (3, LENGTH, 1)])
def test_a_wrong_shape_is_named(session, wrong):
    ids = np.ones(wrong, np.int64)
    with pytest.raises(InvalidInputError, match="input_ids") as caught:
        session.encode_text(TokenBatch(ids, ids, ids, np.zeros(3, bool)))
    assert caught.value.field == "input_ids"


def test_a_wrong_width_is_named(session):
    text = session.encode_text(tokens(2))
    wrong = TextFeatures(text.cls[:, :-1], text.tokens, text.mask)
    with pytest.raises(InvalidInputError, match=r"text_cls.*\(2, 15\)"):
        session.fold_mentions(wrong, session.encode_image(pixels(2)))


def test_a_precision_that_is_not_there_is_named(tiny_model):
    with pytest.raises(ModelError, match=r"'int8'; there is fp32"):
        OnnxSession.open(tiny_model, precision="int8")
    with pytest.raises(ModelError, match="'fp64'"):
        OnnxScorer.open(tiny_model, precision="fp64")


def test_threads_below_one_are_refused(tiny_model):
    with pytest.raises(InvalidInputError, match="threads: 0"):
        OnnxSession.open(tiny_model, threads=0)


def test_manifest_survives_writing(tiny_model, tmp_path):
    manifest = ModelManifest.read(tiny_model)
    manifest.write(tmp_path)
    assert ModelManifest.read(tmp_path) == manifest
