"""A training run from its options: data read, model built, caches filled, trained; its device and its log."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from tokenizers import Tokenizer

from mimic_engine.data.images import BrokenImages
from mimic_engine.data.source import Dataset, open_dataset
from mimic_engine.errors import DataError, InvalidInputError
from mimic_engine.images import ImagePreprocessor
from mimic_engine.model.checkpoint import tokenizer_json_text
from mimic_engine.model.units import Mimic
from mimic_engine.text import TextPreprocessor
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.corpus import Corpus, build_corpus
from mimic_engine.train.distributed import Group, join_group, leave_group
from mimic_engine.train.encode import RecordEncoder
from mimic_engine.train.state import Progress
from mimic_engine.train.trainer import Trainer

log = logging.getLogger("mimic_engine.train")


def train(config: TrainConfig) -> Progress:
    """Run a training from its options; see :class:`~mimic_engine.train.trainer.Trainer`.

    Raises
    ------
    InvalidInputError
        If the run folder holds another run and ``resume`` is off.
    """
    if (config.out / "last.pt").exists() and not config.resume:
        raise InvalidInputError(f"--out: {config.out} holds a run; give --resume to go on, or another folder")
    config.out.mkdir(parents=True, exist_ok=True)
    if config.threads:
        torch.set_num_threads(config.threads)
    device = chosen_device(config)
    group = join_group(device)
    try:
        with denormals_as_zero():
            return build_trainer(config, _read(config), device, group).fit()
    finally:
        leave_group(group)


def build_trainer(config: TrainConfig, dataset: Dataset, device: str, group: Group | None = None) -> Trainer:
    """Model, corpus, caches and trainer of a run over ``dataset`` (splits "train" and "dev")."""
    group = group or Group()
    model = fresh_model(config, device, group)
    encode = build_encode(config, model, build_run_corpus(config, dataset, ("train", "dev")))
    fill_caches(config, encode, group)
    return Trainer(config, encode, tokenizer_json(config), group)


def fresh_model(config: TrainConfig, device: str, group: Group | None = None) -> Mimic:
    """Pretrained encoders, and projections and matcher drawn by the run's seed; in evaluation mode."""
    torch.manual_seed(config.seed)
    own = f"cuda:{(group or Group()).local_rank}" if device == "cuda" else device
    return Mimic.build(config.model_config()).to(own).eval()


def build_run_corpus(config: TrainConfig, dataset: Dataset, splits: Sequence[str]) -> Corpus:
    """Entities and the mentions of ``splits``, tokenised as the run's text encoder reads them."""
    text = TextPreprocessor(Tokenizer.from_str(tokenizer_json(config)), config.model_config().text)
    image = config.model_config().image
    return build_corpus(
        dataset.entities,
        {name: dataset.splits[name] for name in splits},
        text,
        image.entity_pictures,
        names=config.names_in_loss,
    )


def build_encode(config: TrainConfig, model: Mimic, corpus: Corpus) -> RecordEncoder:
    """Records of ``corpus`` to features under ``model``; without caches as yet."""
    on_gpu = next(model.parameters()).is_cuda
    return RecordEncoder(
        model,
        corpus,
        ImagePreprocessor(model.config.image),
        train_text=config.train_text_encoder,
        train_image=config.train_image_encoder,
        broken=BrokenImages(config.broken_images),
        bf16=config.precision == "bf16" or (config.precision == "auto" and on_gpu),
    )


def fill_caches(config: TrainConfig, encode: RecordEncoder, group: Group | None = None) -> None:
    """Compute or open the features of frozen encoders; lists broken images in the log."""
    group = group or Group()
    folder = config.cache or config.out / "cache"
    group.main_first(
        lambda: encode.fill_caches(
            folder, dtype=config.cache_dtype, batch_size=config.encode_batch, progress=group.main
        )
    )
    lost = encode.broken_images()
    if lost:
        log.warning("%d broken images are taken for missing:\n%s", len(lost), "\n".join(lost))


def tokenizer_json(config: TrainConfig) -> str:
    """Text of the tokenizer file of the run's text encoder."""
    return tokenizer_json_text(config.model_config().encoder.text_source)


def chosen_device(config: TrainConfig) -> str:
    """The torch device that ``--device`` means here; InvalidInputError where there is no such one."""
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidInputError(f"--device: {config.device!r}, but torch sees no CUDA device")
    if ":" in config.device and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InvalidInputError(f"--device: {config.device!r} is one GPU for several processes; say 'cuda'")
    return config.device


def configure_logging() -> None:
    """Log lines to stderr from the first process, warnings from the others."""
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(message)s")


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Numbers below 1e-38 are taken for zero inside, in the calling thread.

    Sharp attention is full of them, forwards and backwards, and a CPU takes many times as long for
    each as for an ordinary number. Threads that are started inside keep this for good, those that were
    there before have none of it: enter before PyTorch's pool exists, that is before the first large
    operation. Nothing changes on a processor that cannot do it.
    """
    before = flushes_denormals()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def flushes_denormals() -> bool:
    """Whether the calling thread takes denormal results for zero."""
    smallest_normal = torch.finfo(torch.float32).tiny
    return bool(np.full(1, smallest_normal, np.float32) * np.float32(0.5) == 0)


def _read(config: TrainConfig) -> Dataset:
    dataset = open_dataset(config.data, splits=("train", "dev"))
    log.info("%s:\n%s", config.data, dataset.report)
    for split in ("train", "dev"):
        if not dataset.splits[split]:
            raise DataError(f"{config.data}: no mentions in split {split!r}")
    return dataset
