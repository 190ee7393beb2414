"""Agreement of the scan's shortcuts on real mentions: certified against exact, coded against exact.

    python -m benchmarks.scan.agreement --name wikimel --model MODEL --index INDEX --data WikiMEL \
        --out benchmarks/results/scan_agreement.json

Every mention of a split is asked in every mode. The certified answer must be the
exact one, ids, order and scores; a difference stops the run. What is reported is
how many entities each mode scored, and how often the coded answer is the exact
one. Several runs with different ``--name`` are kept in one file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimic_engine.backends.encoders import open_featurizer
from mimic_engine.backends.scan import open_kernels
from mimic_engine.data.images import BrokenImages
from mimic_engine.data.source import open_dataset
from mimic_engine.encoding.featurizer import Featurizer
from mimic_engine.encoding.onnx import available_threads
from mimic_engine.errors import EngineError, MimicError
from mimic_engine.evaluate.evaluate import prepare_labelled
from mimic_engine.index.store import Index
from mimic_engine.provenance import header, write_result
from mimic_engine.scan.scan import Scan, TopK
from mimic_engine.types import KERNELS, LabelledMention, MentionArrays

TOP_K = 10
BATCH = 64
RERANKS = (16, 32, 64, 128, 256)


def measure(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Ask every mention in every mode.

    Raises
    ------
    EngineError
        If a certified answer is not the exact one.
    """
    index = Index.open(args.index)
    featurizer = open_featurizer(args.model, threads=args.threads)
    index.check_model(featurizer.model_hash)
    kernels = open_kernels(args.scorer, args.model, featurizer.constants)
    scan = Scan(index.segments, kernels, threads=args.threads, tie_key=index.ids, codes=index.codes)
    labelled = open_dataset(args.data, splits=(args.split,)).splits[args.split]
    labelled = labelled[: args.limit or None]
    k = min(TOP_K, len(scan))
    shares: list[NDArray[np.float64]] = []
    dense = 0
    coded: dict[int, list[tuple[float, float]]] = {r: [] for r in RERANKS if "coded" in scan.modes}
    for batch in _batches(featurizer, labelled):
        exact = scan.search(batch, k, mode="exact")
        certified = scan.search(batch, k)
        _check(certified, exact)
        shares.append(certified.scored / len(scan))
        dense += sum(mode == "exact" for mode in certified.modes)
        for rerank, found in coded.items():
            found += _agreement(scan.search(batch, k, mode="coded", rerank=rerank), exact)
    scan.close()
    share = np.concatenate(shares)
    say(f"{len(labelled)} mentions: certified identical, {share.mean():.3%} of the entities scored")
    return {
        "model_hash": featurizer.model_hash,
        "split": args.split,
        "mentions": len(labelled),
        "entities": len(scan),
        "k": k,
        "scorer": scan.scorer_name,
        "certified": {
            "identical": 1.0,
            "finished_dense": dense / len(labelled),
            "survivor_share": _spread(share),
        },
        "coded": [_coded_row(r, found) for r, found in coded.items()],
    }


def _batches(featurizer: Featurizer, labelled: Sequence[LabelledMention]) -> Iterator[MentionArrays]:
    broken = BrokenImages("error")
    for start in range(0, len(labelled), BATCH):
        batch = labelled[start : start + BATCH]
        yield featurizer.fold_prepared([prepare_labelled(featurizer, m, broken) for m in batch])


def _check(certified: TopK, exact: TopK) -> None:
    same = (certified.rows == exact.rows).all(1) & (certified.scores == exact.scores).all(1)  # (B,)
    if not same.all():
        b = int(np.argmin(same))
        found, expected = certified.rows[b].tolist(), exact.rows[b].tolist()
        raise EngineError(f"certified: {found} for a mention whose exact answer is {expected}")


def _agreement(coded: TopK, exact: TopK) -> list[tuple[float, float]]:
    """For each mention: is the best entity the exact one, and which share of the exact k is found."""
    return [
        (float(c[0] == e[0]), float(np.isin(e, c).mean()))
        for c, e in zip(coded.rows, exact.rows, strict=True)
    ]


def _coded_row(rerank: int, found: list[tuple[float, float]]) -> dict[str, float]:
    best, contained = np.array(found).T
    return {
        "r": rerank,
        "agreement_top1": float(best.mean()),
        "top10_contained": float(contained.mean()),
        "whole_top10": float((contained == 1).mean()),
    }


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    quantiles = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {"mean": float(values.mean())} | {n: float(np.quantile(values, q)) for n, q in quantiles.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scan.agreement", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("--name", required=True, help="of this run in the result file")
    add("--out", type=Path, required=True, help="result file; other runs in it are kept")
    add("--model", type=Path, required=True)
    add("--index", type=Path, required=True)
    add("--data", type=Path, required=True, help="data set with mentions of that index")
    add("--split", default="test")
    add("--limit", type=int, default=0, help="only the first mentions; 0 = all")
    add("--scorer", choices=KERNELS, default="auto")
    add("--threads", type=int, default=available_threads(), help="%(default)s")
    args = parser.parse_args(argv)
    try:
        run = {"header": header(), **measure(args, lambda line: print(line, flush=True))}
        runs = json.loads(args.out.read_text("utf-8"))["runs"] if args.out.exists() else {}
        print(write_result(args.out, {"runs": runs | {args.name: run}}))
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
