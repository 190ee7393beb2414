"""Several pictures an entity: the mean of their features, in training, validation and the index alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mimic_engine.config import ImageConfig, ModelConfig
from mimic_engine.data.images import BrokenImages
from mimic_engine.data.source import open_dataset
from mimic_engine.encoding.featurizer import Featurizer, mean_images
from mimic_engine.encoding.knowledge_base import KnowledgeBaseFeaturizer
from mimic_engine.encoding.torch import TorchSession
from mimic_engine.errors import InvalidInputError, ModelError
from mimic_engine.files import decode
from mimic_engine.images import ImagePreprocessor
from mimic_engine.model.checkpoint import _config_salt, load_checkpoint, model_hash
from mimic_engine.text import TextPreprocessor
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.encode import RecordEncoder, fold_entities
from mimic_engine.train.run import _read, build_trainer
from mimic_engine.train.trainer import Trainer
from mimic_engine.types import ImageFeatures

Options = Callable[..., TrainConfig]
ALBUMS = {0: ["0.png", "1.png", "3.png"], 1: ["4.png"], 2: [], 3: ["6.png", "broken.png"], 4: ["broken.png"]}


@pytest.fixture
def albums(data: Path, tmp_path: Path) -> Path:
    """The made-up people, some of them with several pictures, one of which is broken."""
    root = tmp_path / "albums"
    shutil.copytree(data, root)
    (root / "broken.png").write_bytes(b"not a picture")
    entities = [json.loads(line) for line in (root / "kb.jsonl").read_text().splitlines()]
    for row, images in ALBUMS.items():
        entities[row]["images"] = images
    (root / "kb.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entities))
    return root


@pytest.fixture
def mean_options(options: Options, albums: Path) -> Options:
    return lambda **changes: options(
        **{"data": albums, "broken_images": "as-missing", "entity_pictures": "mean"} | changes
    )


def _trainer(config: TrainConfig) -> Trainer:
    config.out.mkdir(parents=True, exist_ok=True)
    trainer = build_trainer(config, _read(config), "cpu")
    trainer.model.eval()
    return trainer


@torch.no_grad()
def _each(trainer: Trainer, folder: Path, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of single pictures, without albums or caches."""
    load, encoder = ImagePreprocessor(trainer.model.config.image), trainer.model.encoder
    pixels = np.stack([load(folder / name) for name in names] or [load.missing()])
    return encoder.project_image(encoder.image_backbone(torch.from_numpy(pixels)))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("most", "used"), [(8, 3), (2, 2)])
def test_an_album_is_the_mean_of_its_usable_pictures(
    mean_options: Options, albums: Path, trained: bool, most: int, used: int
) -> None:
    trainer = _trainer(mean_options(train_image_encoder=trained, max_pictures=most))
    with torch.no_grad():
        got = trainer._encode(np.arange(5))
    usable = [ALBUMS[0][:used], ALBUMS[1], [], ["6.png"], []]
    for row, names in enumerate(usable):
        cls, tokens = _each(trainer, albums, names)
        torch.testing.assert_close(got.image_cls[row], cls.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.image_tokens[row], tokens.mean(0), rtol=1e-4, atol=1e-5)
    first, _ = _each(trainer, albums, ALBUMS[0][:1])
    assert not torch.allclose(got.image_cls[0], first[0], atol=1e-3)


@pytest.mark.parametrize("pictures", ["first", "mean"])
def test_an_index_gets_what_training_validated(mean_options: Options, pictures: str) -> None:
    config = mean_options(entity_pictures=pictures, epochs=1)
    trainer = _trainer(config)
    trainer.fit()
    loaded = load_checkpoint(config.out / "best")
    assert loaded.model.config.image.entity_pictures == (8 if pictures == "mean" else 1)
    session = TorchSession(loaded.model)
    text = TextPreprocessor.open(loaded.tokenizer_json, session.text_config)
    featurizer = Featurizer(session, text, ImagePreprocessor(session.image_config))
    broken = BrokenImages("as-missing")
    entities = open_dataset(config.data, splits=("dev",)).entities
    got = KnowledgeBaseFeaturizer(featurizer, broken).entities(entities)
    trainer.model.load_state_dict(loaded.model.state_dict())
    trainer.model.eval()
    want = dict(fold_entities(trainer._encode, trainer._encode.corpus.entities, 7).items())
    for name, array in got.items():
        np.testing.assert_allclose(array, want[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert [b.owner for b in broken.found] == ["entity 'E3'", "entity 'E4'"][pictures == "first" :]
    lost = trainer._encode.broken_images()
    assert len(lost) == len(broken.found)
    assert ("one of" in lost[0]) == (pictures == "mean")


def test_one_picture_each_is_the_same_model_and_more_another(options: Options) -> None:
    first, mean = (_trainer(options(entity_pictures=p)) for p in ("first", "mean"))
    mean.model.load_state_dict(first.model.state_dict())
    assert model_hash(mean.model) != model_hash(first.model)
    plain = first.model.config.to_json()
    del plain["image"]["entity_pictures"]  # as a checkpoint of before says it
    assert decode(plain, ModelConfig, "", ModelError) == first.model.config
    assert "entity_pictures" not in _config_salt(first.model.config)
    corpus = replace(first._encode.corpus, entity_pictures=8)
    with pytest.raises(ModelError, match="corpus: 8 pictures an entity, the model takes 1"):
        RecordEncoder(
            first.model,
            corpus,
            ImagePreprocessor(first.model.config.image),
            train_text=True,
            train_image=True,
            broken=BrokenImages("error"),
        )


def test_means_of_rows_of_different_counts() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    image = ImageFeatures(rows, np.repeat(rows[:, None], 3, axis=1))
    got = mean_images(image, [1, 3, 2])
    assert got.cls.tolist() == [[0, 1], [4, 5], [9, 10]]
    assert got.tokens.shape == (3, 3, 2)
    assert np.array_equal(got.tokens[:, 2], got.cls)
    assert mean_images(image, [1] * 6) is image


def test_wrong_numbers_are_refused(options: Options) -> None:
    with pytest.raises(InvalidInputError, match="--max-pictures: 1 is less than 2"):
        options(entity_pictures="mean", max_pictures=1)
    with pytest.raises(ModelError, match=r"ImageConfig.entity_pictures: 0 is less than 1"):
        ImageConfig(entity_pictures=0)
