"""Materials of an experiment's runs: corpora, and the features of frozen encoders; each made once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import asdict, replace

from benchmarks.experiments.data import ExperimentData, trained_split
from mimic_engine.data.source import SPLITS
from mimic_engine.model.checkpoint import state_hash
from mimic_engine.model.units import Mimic
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.encode import BACKBONE_KEYS, RecordEncoder
from mimic_engine.train.run import (
    build_encode,
    build_run_corpus,
    chosen_device,
    fill_caches,
    fresh_model,
    tokenizer_json,
)
from mimic_engine.train.trainer import Trainer

# Options that change neither what a text or image is read as nor the features of frozen encoders.
# One that is missing here costs time only: its runs share no corpus with those of another value.
_INDIFFERENT = frozenset(
    (
        *("data", "out", "cache", "seed", "resume", "threads", "freeze_embeddings", "tglu", "vision", "cmfu"),
        *("unit_losses", "lr", "encoder_lr", "head_lr", "schedule", "warmup", "beta1"),
        *("beta2", "eps", "weight_decay", "grad_clip", "accumulate", "batch_size", "epochs", "max_steps"),
        *("same_entity", "hard_batches", "drop_images", "drop_texts", "extra_negatives", "validate_every"),
        *("patience", "dev_limit", "precision", "encode_batch", "ema", "gradient_cache"),
        *("mined_negatives", "mine_depth", "mine_from", "mine_every"),
    )
)


class Materials:
    """Gives each run its encoder and trainer over what all share.

    Parameters
    ----------
    data : what is trained on and tested.
    """

    def __init__(self, data: ExperimentData) -> None:
        self.data = data
        self._filled: dict[Hashable, RecordEncoder] = {}

    def encoder_hashes(self, config: TrainConfig) -> dict[str, str]:
        """SHA-256 of the pretrained weights of each encoder."""
        state = fresh_model(config, "cpu").encoder.state_dict()
        return {
            f"{side} encoder": state_hash({k: v for k, v in state.items() if k.startswith(keys)})
            for side, keys in BACKBONE_KEYS.items()
        }

    def trainer(self, config: TrainConfig, train_on: str) -> tuple[Trainer, RecordEncoder]:
        """A trainer as the run's options say, and the encoder that it trains, drawn anew by the seed."""
        model = fresh_model(config, chosen_device(config))
        encode = self._encoder(config, model, train_on)
        return Trainer(config, encode, tokenizer_json(config)), encode

    def tested(self, config: TrainConfig, model: Mimic, train_on: str) -> RecordEncoder:
        """The encoder of a trained model over the own data set; its corpus is that of ``data.tested``."""
        whole = self._encoder(config, model, "own")
        splits = {name: whole.corpus.splits[name] for name in SPLITS}
        trained = whole.corpus.splits[trained_split(train_on)]
        return whole.over(replace(whole.corpus, splits=splits | {"train": trained}))

    def _encoder(self, config: TrainConfig, model: Mimic, train_on: str) -> RecordEncoder:
        key = train_on, *((k, v) for k, v in asdict(config).items() if k not in _INDIFFERENT)
        first = self._filled.get(key)
        if first is not None:
            encode = build_encode(config, model, first.corpus)
            encode.share_caches(first)
            return encode
        dataset = self.data.training(train_on)
        encode = build_encode(config, model, build_run_corpus(config, dataset, tuple(dataset.splits)))
        fill_caches(config, encode)
        self._filled[key] = encode
        return encode
