"""The training loop: unit-consistent loss, steps, validation, early stop, checkpoints (section 4.1.4).

What a step computes is in :meth:`Trainer.step` and
:class:`~mimic_engine.train.batch_loss.BatchLoss`; read those first. Data come as
a :class:`~mimic_engine.train.corpus.Corpus`, features from a
:class:`~mimic_engine.train.encode.RecordEncoder`.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from mimic_engine.errors import EngineError
from mimic_engine.metrics import Metrics, ranking_metrics
from mimic_engine.model.checkpoint import save_checkpoint
from mimic_engine.model.units import Mimic
from mimic_engine.train.batch_loss import BatchLoss
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.corpus import Split
from mimic_engine.train.distributed import Group
from mimic_engine.train.encode import RecordEncoder, fold_mentions
from mimic_engine.train.log import RunLog
from mimic_engine.train.optimiser import (
    WeightAverage,
    build_optimiser,
    freeze,
    rate_factor,
    set_modes,
    set_rates,
)
from mimic_engine.train.ranking import entity_scan
from mimic_engine.train.sampler import Batch, BatchSampler, mine_negatives
from mimic_engine.train.state import Progress, load_state, save_state


class Trainer:
    """One run.

    Parameters
    ----------
    config : the run's options.
    encode : records to features, around the model to train.
    tokenizer_json : text of the tokenizer file, which checkpoints carry.
    group : this process among others.
    """

    def __init__(
        self, config: TrainConfig, encode: RecordEncoder, tokenizer_json: str, group: Group | None = None
    ) -> None:
        self.config = config
        self.group = group or Group()
        self.progress = Progress()
        self._encode = encode
        self._tokenizer_json = tokenizer_json
        freeze(self.model, config)
        self.optimiser = build_optimiser(self.model, config)
        self._train, self._dev = encode.corpus.splits["train"], self._dev_sample()
        self.batch_loss = BatchLoss(config, encode, self._train, self.group)
        self._average = WeightAverage(self.model, config.ema) if config.ema else None
        self._mined: NDArray[np.int64] | None = None  # (M, depth), see mining.py
        self.sampler = BatchSampler(
            self._train.gold,
            encode.corpus.names,
            config.batch_size,
            same_entity=config.same_entity,
            hard_share=config.hard_batches,
            extra_negatives=config.extra_negatives,
            mined_negatives=config.mined_negatives,
            smallest=max(2, self.group.world),
            seed=config.seed,
        )

    @property
    def model(self) -> Mimic:
        """The model in training."""
        return self._encode.model

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, early stop aside."""
        steps = self.config.epochs * math.ceil(len(self.sampler) / self.config.accumulate)
        return min(steps, self.config.max_steps or steps)

    def fit(self) -> Progress:
        """Train to the last epoch, the step limit, or the early stop; resumes where the options say so."""
        torch.manual_seed(self.config.seed * self.group.world + self.group.rank)
        if self.config.resume:
            self._load()
        log = RunLog(self.config.out, self.progress.rows) if self.group.main else None
        try:
            while not self._finished():
                self._epoch(log)
        finally:
            if log is not None:
                log.close()
        return self.progress

    def step(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One optimiser step over ``accumulate`` batches; the mean of each loss by name.

        The gradient is that of the mean over the batches: as one large batch
        would give, but that a mention meets only the entities of its own batch.
        """
        set_modes(self.model, self.config)
        set_rates(self.optimiser, rate_factor(self.progress.step, self.total_steps, self.config))
        sums: dict[str, float] = defaultdict(float)
        for batch in batches:
            losses = self.batch_loss.backward(batch, 1 / len(batches), self.progress.step)
            for name, value in losses.items():
                sums[name] += value
        if not math.isfinite(sums["loss"]):
            raise EngineError(
                f"step {self.progress.step + 1}: the loss is {sums['loss']} ({dict(sums)}): lower --lr "
                f"({self.config.lr}), set --grad-clip, or use --precision fp32"
            )
        self.group.sum_gradients(self.model.parameters())
        if self.config.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update()
        self.progress.step += 1
        return dict(sums)

    def validate(self) -> Metrics:
        """Metrics of the dev mentions among all entities (in the run's precision)."""
        self.model.eval()
        size = self.config.encode_batch
        mentions = fold_mentions(self._encode, self._dev.records, size)
        with entity_scan(self._encode, size) as scan:
            return ranking_metrics(scan.ranks(mentions, self._dev.gold, names=self._dev.names), len(scan))

    def _epoch(self, log: RunLog | None) -> None:
        start = time.monotonic()
        progress, sums, steps = self.progress, defaultdict[str, float](float), 0
        label = f"epoch {progress.epoch + 1}/{self.config.epochs}"
        self._mine()
        with tqdm(self._groups(progress.epoch), desc=label, unit="step", disable=log is None) as bar:
            for batches in bar:
                losses = self.step(batches)
                steps += 1
                for name, value in losses.items():
                    sums[name] += value
                if log is not None:
                    log.step(progress.step, losses)
                    bar.set_postfix(loss=f"{losses['loss']:.3f}", refresh=False)
        progress.epoch += 1
        took = time.monotonic() - start
        progress.seconds += took
        start += took
        row = {"epoch": progress.epoch, "step": progress.step, "lr": self.optimiser.param_groups[-1]["lr"]}
        row["step_seconds"] = took / max(1, steps)
        row |= {name: total / max(1, steps) for name, total in sums.items()}
        last = progress.step >= self.total_steps or progress.epoch >= self.config.epochs
        if last or progress.epoch % self.config.validate_every == 0:
            row |= self._validated()
        progress.seconds += time.monotonic() - start
        row["seconds"] = progress.seconds
        progress.rows.append(row)
        if log is not None:
            log.epoch(row)
            self._save()
            tqdm.write("  ".join(f"{k} {v:.6g}" for k, v in row.items()))

    def _mine(self) -> None:
        """Before an epoch: rank the training mentions where the options say so, once for all processes."""
        c, since = self.config, self.progress.epoch - self.config.mine_from
        if not c.mined_negatives or since < 0 or since % c.mine_every:
            return
        mined = None
        if self.group.main:
            mined = mine_negatives(self._encode, self._train, c.mine_depth, c.encode_batch, progress=True)
        self._mined = self.group.from_main(mined)

    def _save(self) -> None:
        more = {
            "mined": None if self._mined is None else torch.from_numpy(self._mined),
            "average": None if self._average is None else self._average.state(),
        }
        save_state(self.config.out / "last.pt", self.config, self.progress, self.model, self.optimiser, more)

    def _load(self) -> None:
        path = self.config.out / "last.pt"
        self.progress, more = load_state(path, self.config, self.model, self.optimiser)
        self._mined = None if more["mined"] is None else more["mined"].numpy()
        if self._average is not None:
            self._average.restore(more["average"])

    def _validated(self) -> dict[str, float]:
        """Dev metrics of the model that is to be kept; keeps it as the best one where its MRR is."""
        with nullcontext() if self._average is None else self._average.applied():
            metrics = self.validate().to_json() if self.group.main else {}
            mrr = self.group.from_main(float(metrics.get("mrr", 0.0)))
            self.progress.waited += 1
            if mrr > self.progress.best_mrr:
                self.progress.best_mrr, self.progress.waited = mrr, 0
                if self.group.main:
                    self._save_best(metrics)
        return {k: float(v) for k, v in metrics.items() if k.startswith("hits") or k in ("mrr", "mr")}

    def _save_best(self, metrics: dict[str, float | int]) -> None:
        trained = self.config.train_text_encoder or self.config.train_image_encoder
        extra = {
            "train": self.config.to_json(),
            "train_seconds": self.progress.seconds,
            "dev": metrics,
            "epoch": self.progress.epoch,
        }
        save_checkpoint(
            self.model,
            self.config.out / "best",
            tokenizer_json=self._tokenizer_json,
            include_backbone=trained,
            extra=extra,
        )

    def _finished(self) -> bool:
        p = self.progress
        return p.epoch >= self.config.epochs or p.step >= self.total_steps or p.waited >= self.config.patience

    def _groups(self, epoch: int) -> list[list[Batch]]:
        """The batches of an epoch, ``accumulate`` to a step, cut at the step limit."""
        batches, k = self.sampler.batches(epoch, self._mined), self.config.accumulate
        groups = [batches[i : i + k] for i in range(0, len(batches), k)]
        return groups[: self.total_steps - self.progress.step]

    def _dev_sample(self) -> Split:
        dev, limit = self._encode.corpus.splits["dev"], self.config.dev_limit
        if not limit or limit >= len(dev.records):
            return dev
        chosen = np.sort(np.random.default_rng(self.config.seed).permutation(len(dev.records))[:limit])
        return dev.take(chosen)
