"""Batches of training mentions: which mentions meet which entities as in-batch negatives.

A batch is mentions and the entity columns that they are scored against. Under
``merge`` (default) two mentions of one entity share its column, so that the
gold entity of one is never a negative of the other; under ``ignore`` every
mention brings its own column, as in the published code.

Confusable names make the hard part of entity linking, and random batches
hardly ever hold two of them. There are three means. Two use the tokens of entity
names: a share of each batch filled with mentions whose gold entities share a name
token, and extra entities whose names share a token with a gold one. The third are hard
negatives, mined between epochs: the entities that the model in training ranks
high for a mention and that are wrong, found with the engine's own certified scan
over all entities, as in approximate-nearest-neighbour negative contrast (ANCE,
Xiong et al. 2021, ICLR), but exactly. None of the three is in the paper, whose
negatives are the other entities of a batch.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tqdm import tqdm

from mimic_engine.errors import DataError
from mimic_engine.train.corpus import Rows, Split
from mimic_engine.train.encode import RecordEncoder, fold_mentions
from mimic_engine.train.ranking import entity_scan

MENTIONS_AT_ONCE = 2048  # mined for; their folded arrays are about 31 KB each at a text length of 40


@dataclass(frozen=True, slots=True)
class Batch:
    """B mentions, C entity columns, and the gold column of each mention."""

    mentions: Rows  # (B,) positions among the training mentions
    entities: Rows  # (C,) entity rows
    target: Rows  # (B,) in 0..C-1


class BatchSampler:
    """Batches of an epoch, a function of seed, epoch and the mined entities that are given.

    Parameters
    ----------
    gold : (M,) int64, entity row of each training mention.
    names : entity names, by row.
    batch_size : mentions a batch; the last one of an epoch may be smaller.
    same_entity : "merge" or "ignore", see above.
    hard_share : share of each batch, 0 to 1, filled with groups of confusable names.
    extra_negatives : entities of confusable names added to each batch ("merge" only).
    mined_negatives : mined entities added to each batch ("merge" only).
    smallest : batches of fewer mentions are left out (a lone mention has no negative).
    seed : of everything random here.
    """

    def __init__(
        self,
        gold: Rows,
        names: Sequence[str],
        batch_size: int,
        *,
        same_entity: Literal["merge", "ignore"] = "merge",
        hard_share: float = 0.0,
        extra_negatives: int = 0,
        mined_negatives: int = 0,
        smallest: int = 2,
        seed: int = 0,
    ) -> None:
        if len(gold) < smallest:
            raise DataError(f"training split: {len(gold)} mentions are fewer than {smallest}")
        self._gold = gold
        self._batch_size = batch_size
        self._same_entity = same_entity
        self._hard_share = hard_share
        self._extra = extra_negatives
        self._mined = mined_negatives
        self._smallest = smallest
        self._seed = seed
        self._names = NameIndex(names) if hard_share or extra_negatives else NameIndex([])

    def __len__(self) -> int:
        whole, rest = divmod(len(self._gold), self._batch_size)
        return whole + (rest >= self._smallest)

    def batches(self, epoch: int, mined: Rows | None = None) -> list[Batch]:
        """All batches of an epoch; each mention in at most one of them.

        ``mined`` (M, depth) are entities that are wrong for each training mention, to draw from.
        """
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(len(self._gold))
        hard = self._hard_order(order, rng)[: round(self._hard_share * len(order))]
        easy = order[~np.isin(order, hard)]
        parts = []
        for i in range(len(self)):
            start, stop = i * self._batch_size, min((i + 1) * self._batch_size, len(order))
            h = slice(*(round(x * len(hard) / len(order)) for x in (start, stop)))
            parts.append(np.concatenate([hard[h], easy[start - h.start : stop - h.stop]]))
        return [self._batch(parts[i], mined, rng) for i in rng.permutation(len(parts))]

    def _hard_order(self, order: Rows, rng: np.random.Generator) -> Rows:
        """Mentions in groups of one shared name token each, the groups in random order."""
        if not self._hard_share:
            return order[:0]
        groups: dict[str, list[int]] = defaultdict(list)
        for mention in order:
            token = self._names.choose(int(self._gold[mention]), rng)
            if token is not None:
                groups[token].append(int(mention))
        useful = [
            _interleaved(g, self._gold) for g in groups.values() if len(set(self._gold[g].tolist())) > 1
        ]
        shuffled = [useful[i] for i in rng.permutation(len(useful))]
        return np.array([m for g in shuffled for m in g], dtype=np.int64)

    def _batch(self, mentions: Rows, mined: Rows | None, rng: np.random.Generator) -> Batch:
        gold = self._gold[mentions]
        if self._same_entity == "ignore":
            return Batch(mentions, gold, np.arange(len(gold)))
        entities, target = np.unique(gold, return_inverse=True)
        entities = np.concatenate([entities, self._confusable(gold, rng)])
        if mined is not None:
            entities = np.concatenate([entities, _drawn(mined[mentions], entities, self._mined, rng)])
        return Batch(mentions, entities, target)

    def _confusable(self, gold: Rows, rng: np.random.Generator) -> Rows:
        """Up to ``extra_negatives`` entities that share a name token with a gold one."""
        taken, out = set(gold.tolist()), []
        for row in rng.permutation(np.resize(gold, max(len(gold), self._extra))) if self._extra else ():
            token = self._names.choose(int(row), rng)
            if token is None:
                continue
            entity = int(rng.choice(self._names.rows[token]))
            if entity not in taken:
                taken.add(entity)
                out.append(entity)
            if len(out) == self._extra:
                break
        return np.array(out, dtype=np.int64)


class NameIndex:
    """Entities by the tokens of their names; only tokens that at least two and at most ``most`` share."""

    def __init__(self, names: Sequence[str], most: int = 2000) -> None:
        by_token: dict[str, list[int]] = defaultdict(list)
        for row, name in enumerate(names):
            for token in sorted(set(re.findall(r"\w+", name.casefold()))):
                by_token[token].append(row)
        self.rows = {t: np.array(r) for t, r in by_token.items() if 2 <= len(r) <= most}
        self.tokens: list[list[str]] = [[] for _ in names]
        for token, shared in self.rows.items():
            for row in shared:
                self.tokens[row].append(token)

    def choose(self, row: int, rng: np.random.Generator) -> str | None:
        """A shared token of the entity's name, weighted by 1 / sqrt of how many share it."""
        tokens = self.tokens[row]
        if not tokens:
            return None
        weight = np.array([1 / np.sqrt(len(self.rows[t])) for t in tokens])
        return tokens[int(rng.choice(len(tokens), p=weight / weight.sum()))]


def mine_negatives(
    encode: RecordEncoder, split: Split, depth: int, batch_size: int, *, progress: bool = False
) -> Rows:
    """The ``depth`` best wrong entities of each mention of a split, best first.

    A function of the model alone: it runs in evaluation mode and draws nothing at random.

    Parameters
    ----------
    encode : around the model, which is left in evaluation mode.
    split : M mentions and their gold entities.
    depth : entities a mention; fewer where the corpus has no more.
    batch_size : rows encoded at a time.
    progress : show a progress bar.

    Returns
    -------
    (M, min(depth, N - 1)) int64 entity rows, the mention's gold entity not among them.
    """
    encode.model.eval()
    wanted = min(depth + 1, len(encode.corpus.entities))
    out = np.empty((len(split.gold), wanted - 1), np.int64)
    bar = tqdm(total=len(out), desc="hard negatives", unit="mention", disable=not progress, leave=False)
    with bar, entity_scan(encode, batch_size) as scan:
        for start in range(0, len(out), MENTIONS_AT_ONCE):
            rows = slice(start, start + MENTIONS_AT_ONCE)
            mentions = fold_mentions(encode, split.records[rows], batch_size)
            names = None if split.names is None else split.names[rows]
            out[rows] = without_gold(scan.search(mentions, wanted, names=names).rows, split.gold[rows])
            bar.update(mentions.rows)
    return out


def without_gold(ranked: Rows, gold: Rows) -> Rows:
    """Ranked entities (B, K) without each mention's gold one, or else without the last; (B, K - 1)."""
    drop = ranked == gold[:, None]  # (B, K)
    drop[~drop.any(1), -1] = True
    return ranked[~drop].reshape(len(ranked), ranked.shape[1] - 1)


def _drawn(mined: Rows, taken: Rows, count: int, rng: np.random.Generator) -> Rows:
    """Up to ``count`` of the mined entities (B, depth) that are not ``taken``.

    In rounds: one of each mention, in random order, then another of each.
    """
    order = rng.permuted(mined, axis=1)[rng.permutation(len(mined))].T.reshape(-1)  # (depth B,)
    fresh = order[~np.isin(order, taken)]
    first = np.sort(np.unique(fresh, return_index=True)[1])
    return fresh[first[:count]]


def _interleaved(mentions: list[int], gold: Rows) -> list[int]:
    """The mentions of a group so that different entities stand side by side: one of each, then the next."""
    seen: dict[int, int] = defaultdict(int)
    rounds = []
    for m in mentions:
        rounds.append((seen[int(gold[m])], m))
        seen[int(gold[m])] += 1
    return [m for _, m in sorted(rounds, key=lambda r: r[0])]
