"""How well the demo links: text, image, both, and with names, on drawing styles that training never saw.

``python -m benchmarks.demo`` writes ``benchmarks/results/demo.json``. Figures
without "with_names" are of the model's score alone. Every figure is over all
entities of the demo's knowledge base, ties counted against us, and over mentions
that have an image, so that the inputs are compared on the same mentions.
Sentences and images were paired by us, and entities are shared between training
and test.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import RESULTS
from mimic_engine.demo import DemoData, default_cache, read_demo
from mimic_engine.demo.prepare import prepare_demo
from mimic_engine.engine.linker import Linker
from mimic_engine.metrics import ranking_metrics
from mimic_engine.provenance import write_result
from mimic_engine.types import LabelledMention, Mention

BATCH = 32


def inputs(mention: Mention) -> dict[str, tuple[Mention, bool]]:
    """The forms in which a mention is asked, and whether names count: text, picture, both; and with names."""
    text = replace(mention, image=None)
    return {
        "text": (text, False),
        "image": (replace(mention, mention="", sentence=""), False),
        "both": (mention, False),
        "text_with_names": (text, True),
        "both_with_names": (mention, True),
    }


def ranks(linker: Linker, mentions: Sequence[Mention], gold: Sequence[str], *, names: bool) -> np.ndarray:
    """1-based rank of each gold entity among all entities, ties counted against it; (M,)."""
    rows = linker.index.rows(gold)
    parts = [
        linker.ranks(mentions[i : i + BATCH], rows[i : i + BATCH], names=names)
        for i in range(0, len(mentions), BATCH)
    ]
    return np.concatenate(parts)


def measure(
    linker: Linker, labelled: Sequence[LabelledMention], parts: Mapping[str, str]
) -> dict[str, dict[str, dict[str, float]]]:
    """H@1, H@3, MRR and count for each of the inputs, over the mentions that have a picture.

    Parameters
    ----------
    labelled : mentions with gold ids.
    parts : name of each part to report -> start of the ids of its mentions ("" for all).
    """
    pictured = [m for m in labelled if m.mention.image is not None]
    gold = [m.answer for m in pictured]
    out: dict[str, dict[str, dict[str, float]]] = {part: {} for part in parts}
    asked = [inputs(m.mention) for m in pictured]
    for form in asked[0] if asked else ():
        names = asked[0][form][1]
        found = ranks(linker, [one[form][0] for one in asked], gold, names=names)
        for part, start in parts.items():
            chosen = np.array([m.id.startswith(start) for m in pictured])
            metrics = ranking_metrics(found[chosen], len(linker.index)).to_json()
            out[part][form] = {name: metrics[name] for name in ("hits@1", "hits@3", "mrr", "mentions")}
    return out


def evaluate(linker: Linker, demo: DemoData) -> dict[str, dict[str, dict[str, float]]]:
    """All parts: the test split, its cross-article mentions, and the hand-checked challenge set."""
    return measure(linker, demo.mentions["test"], {"test": "", "cross": "cross/"}) | measure(
        linker, demo.challenge, {"challenge": ""}
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="the demo's folder (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "demo.json")
    args = parser.parse_args(argv)
    paths = prepare_demo(args.cache)
    linker = Linker.open(paths.model, paths.index)
    result = evaluate(linker, read_demo(args.cache))
    write_result(args.out, {**result, "candidates": len(linker.index), "model_hash": linker.model_hash})
    for part, forms in result.items():
        for form, metrics in forms.items():
            print(part, form, {k: round(v, 4) for k, v in metrics.items()})
    linker.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
