"""Hard negatives: the entities that the model in training ranks high for a mention and that are wrong.

They are found with the engine's own certified scan over all entities, as in
approximate-nearest-neighbour negative contrast (ANCE, Xiong et al. 2021, ICLR),
but exactly. Not in the paper, whose negatives are the other entities of a batch.
What is mined is a function of the model alone: it runs in evaluation mode and
draws nothing at random.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mimic_engine.train.corpus import Split
from mimic_engine.train.encode import RecordEncoder, fold_mentions
from mimic_engine.train.ranking import entity_scan

Rows = NDArray[np.int64]
MENTIONS_AT_ONCE = 2048  # their folded arrays are about 31 KB each at a text length of 40


def mine_negatives(
    encode: RecordEncoder, split: Split, depth: int, batch_size: int, *, progress: bool = False
) -> Rows:
    """The ``depth`` best wrong entities of each mention of a split, best first.

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
            out[rows] = without_gold(scan.search(mentions, wanted).rows, split.gold[rows])
            bar.update(mentions.rows)
    return out


def without_gold(ranked: Rows, gold: Rows) -> Rows:
    """Ranked entities (B, K) without each mention's gold one, or else without the last; (B, K - 1)."""
    drop = ranked == gold[:, None]  # (B, K)
    drop[~drop.any(1), -1] = True
    return ranked[~drop].reshape(len(ranked), ranked.shape[1] - 1)
