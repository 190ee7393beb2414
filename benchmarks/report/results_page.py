"""``docs/results.md``: digest of the files under ``benchmarks/results/``, with what made each.

    python -m benchmarks.report.results_page

Every figure of the page is read from a file here; a test keeps the page current. Tables of all rows of a
result are in the report (:mod:`benchmarks.report.report`), those of experiments on pages of their own
(:mod:`benchmarks.report.experiments_page`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import RESULTS
from benchmarks.report.markdown import table
from benchmarks.report.result_files import Reader, open_result, read_provenance
from mimic_engine.errors import MimicError
from mimic_engine.files import write_atomic

PAGE = RESULTS.parents[1] / "docs" / "results.md"

Row = tuple[str, str]  # what was measured, and what came out

_HEAD = """# Results

What was measured, and the file under `benchmarks/results/` that says so. Each file names the command,
commit, machine and versions that made it; the last table repeats them. Commands are recorded as they were
called: a module may have moved since. All of it ran on CPUs: nothing has been timed on a GPU yet
([gpu.md](gpu.md)). What the training experiments found is in [experiments.md](experiments.md).

This page is written by `python -m benchmarks.report.results_page`; a test keeps it current. Every row of
every file, with plots:

```bash
.venv/bin/python -m benchmarks.report --out report/
```

"""

_ACCURACY = """The candidate sets of WikiMEL and RichpediaMEL are those at hand, not the full ones of the
papers: do not compare the figures with published ones. Hardly any of their mentions has its image here, and
RichpediaMEL's test split is not at hand. The demo's sentences and images were paired by us, and its entities
occur in training and test alike: it shows that the image helps, not how well illustrated prose is linked."""

_SCAN = """The published loop is MIMIC's own evaluation on the same features. Rows of more entities than
WikiMEL has are its own, repeated with noise. The model of the WikiMEL scans was trained for one epoch
only; its mentions have few tokens, and masked padding costs nothing. Random features have 40 real tokens
and many near ties. Other libraries answer other questions than MIMIC's scores do: their rows say what the
same number of entities costs. [scale.md](scale.md) has the growth to ten million entities."""

_NAMES = """Weights of names, and the temperature of probabilities, come from dev mentions of the other two
data sets: of the tested one nothing was seen but its names. "Names alone" weighs every feature 1; ties and
mentions that share nothing with any name count against it. Made-up names stand for millions of forms; of the
other machineries the least is timed that would have to be asked of them, without features."""

_SERVICE = """The service is measured from outside, by an open loop that sends at a constant rate and checks
every answer. How to repeat it: [serving.md](serving.md#measure-it)."""


def _demo(result: Reader) -> list[Row]:
    rows = []
    names = {
        "cross": "Demo, {} test mentions from other articles, drawings by other hands",
        "challenge": "Demo, {} hand-checked ambiguous mentions",
    }
    for part, name in names.items():
        mentions = result.child(part).child("both").integer("mentions")
        both, text, image = (_points(result, f"{part}/{form}/hits@1") for form in ("both", "text", "image"))
        out = f"Hits@1 {both} with text and image, {text} with text alone, {image} with the image alone"
        rows.append((name.format(f"{mentions:,}"), out))
        named, text = (_points(result, f"{part}/{form}_with_names/hits@1") for form in ("both", "text"))
        out = f"Hits@1 {named} with text and image, {text} with text alone"
        rows.append((f"{name.format(f'{mentions:,}')}, names counted", out))
    return rows


def _ranking(split: str, name: str) -> Callable[[Reader], list[Row]]:
    """Rows of a data set's evaluation: all of it, by how many entities bear the name, and the text length."""

    def read(result: Reader) -> list[Row]:
        ranking = result.child(split)
        images = 0 if ranking.value("with_image") is None else ranking.child("with_image").integer("mentions")
        sizes = f"{ranking.integer('candidates'):,} candidates, {ranking.integer('mentions'):,} mentions"
        out = ", ".join(f"{n} {_points(ranking, k)}" for k, n in (("hits@1", "Hits@1"), ("hits@3", "Hits@3")))
        rows = [(f"{name}, {sizes}, {images} with an image", f"{out}, MRR {_points(ranking, 'mrr')}")]
        return [*rows, *_ambiguity(ranking, name), *_text_length(result, name)]

    return read


def _ambiguity(ranking: Reader, name: str) -> list[Row]:
    groups = ranking.child("namesakes")
    one = groups.child("1")
    several = [groups.child(key) for key in groups.data if key not in ("0", "1")]
    mentions = sum(group.integer("mentions") for group in several)
    hits = sum(_correct(group) for group in several)
    errors = ranking.integer("mentions") - _correct(ranking)
    said = f"Hits@1 {_points(one, 'hits@1')} of {one.integer('mentions'):,}"
    said += f", {hits / mentions:.3f} of {mentions:,}"
    return [
        (f"{name}: names that one entity bears, and names that several bear", said),
        (f"{name}: errors that are names of several entities", f"{mentions - hits:,} of {errors:,}"),
    ]


def _text_length(result: Reader, name: str) -> list[Row]:
    """Hits@1 after the last epoch on the part of dev that training watched, of both lengths."""
    chosen = result.child("checkpoint").child("train").integer("max_length")
    [other] = result.children("not_chosen")
    length = other.string("options_in_place_of_these").removeprefix("--max-length ")
    hits = (run.children("training_curve")[-1] for run in (result, other))
    said = " and ".join(f"{_points(epoch, 'hits@1')}" for epoch in hits)
    return [(f"{name}: texts of {chosen} tokens, chosen on a part of dev, and of {length}", f"Hits@1 {said}")]


def _quantised(kind: str) -> Callable[[Reader], list[Row]]:
    """Row of the encoders that were kept."""

    def read(result: Reader) -> list[Row]:
        shipped = result.child("shipped").data
        [kept] = [t for t in result.children("tried") if {k: t.data[k] for k in shipped} == shipped]
        what = " and ".join(part for part in ("text", "image") if shipped[part] is not None)
        said = f"Hits@1 {_points(kept, 'hits_at_1')}, with float32 encoders {_points(kept, 'fp32_hits_at_1')}"
        return [(f"Demo, test split, {what} encoder in {kind}", said)]

    return read


def _scan(result: Reader) -> list[Row]:
    rows = [row for row in result.children("rows") if row.string("dtype") == "float16"]
    loops = {_size(row): row.number("ms") for row in result.children("baseline")}
    names = {
        "real": "WikiMEL's {:,} entities",
        "tiled": "The same repeated to {:,}",
        "random": "Random features, {:,} entities",
    }
    groups: dict[tuple[str, str, int, int], dict[str, Reader]] = {}
    for row in rows:
        key = (row.string("features"), row.string("backend"), *_size(row))
        groups.setdefault(key, {})[row.string("mode")] = row
    out = []
    for (features, backend, n, b), modes in groups.items():
        if b not in (1, 20) or "exact" not in modes:
            continue
        kernels = "" if backend.startswith("cpu") else ", without compiled kernels"
        times = [f"{mode} {_ms(row.number('ms'))}" for mode, row in sorted(modes.items())]
        if (n, b) in loops and not kernels:
            times.append(f"the published loop {_ms(loops[n, b])}")
        out.append((f"{names[features].format(n)}, {_mentions(b)}{kernels}", ", ".join(times)))
    sizes = result.child("feature_bytes_per_entity")
    stored, read = sizes.number("float16"), sizes.number("baseline")
    share = result.child("outcome").number("exact_sgemm_share")
    same = (f"{dtype} {_share(_same_as_loop(result, dtype))}" for dtype in ("float32", "float16"))
    return [
        *out,
        (
            "Features of an entity, in float16",
            f"{stored / 1e3:.1f} KB; the published loop's {read / 1e3:.1f} KB",
        ),
        ("Exact scan of random features: share of the machine's matrix-product speed", f"{share:.0%}"),
        ("Random features, 20 mentions: the top 10 of the published loop", ", ".join(same)),
    ]


def _same_as_loop(result: Reader, dtype: str) -> float:
    """Share of mentions with the published loop's top 10, at least, over everything that was timed."""
    rows = (r for r in result.children("rows") if r.string("features") == "random" and r.integer("b") == 20)
    return min(row.number("identical_top10") for row in rows if row.string("dtype") == dtype)


def _agreement(result: Reader) -> list[Row]:
    rows = []
    runs = result.child("runs")
    for name, run in ((name, runs.child(name)) for name in runs.data):
        of = f"{run.integer('mentions'):,} mentions, {run.integer('entities'):,} entities"
        certified, coded = run.child("certified"), run.children("coded")[0]
        share = certified.child("survivor_share")
        said = f"the same top {run.integer('k')} for {_share(certified.number('identical'))}; "
        said += (
            f"{_share(share.number('mean'))} of the entities scored, at most {_share(share.number('max'))}"
        )
        rows.append((f"Certified against exact, {name}: {of}", said))
        what = f"Coded against exact, {name}: the same, {coded.integer('r')} entities re-scored"
        rows.append((what, f"the same top 10 for {_share(coded.number('whole_top10'))}"))
    return rows


def _libraries(result: Reader) -> list[Row]:
    return [
        (
            f"{row.string('name')}, {row.integer('n'):,} entities, {_mentions(row.integer('b'))}",
            f"{_ms(row.number('ms'))}, {row.integer('bytes_per_entity'):,} bytes an entity",
        )
        for row in result.children("rows")
    ]


def _names(result: Reader) -> list[Row]:
    rows = []
    for row in result.children("accuracy"):
        model, of = row.string("model"), f"{row.string('set')} {row.string('split')}"
        hits = {k: _points(row, f"{k}/hits@1") for k in ("with_names", "without_names", "names_alone")}
        said = f"Hits@1 {hits['with_names']} with names, {hits['without_names']} without, "
        said += f"{hits['names_alone']} by names alone"
        said += f"; calibration error {row.number('calibration_error'):.3f}"
        rows.append((f"{of}, {row.integer('mentions'):,} mentions, model {model}", said))
    same = sum(row.integer("certified_as_exact") for row in result.children("accuracy"))
    rows.append((f"{same:,} searches with names", "certified as exact: ids, order and bits"))
    for row in result.children("scan"):
        n, b = _size(row)
        what = f"{n:,} entities, {_mentions(b)}: certified with names over without"
        rows.append((what, f"{row.number('ratio'):.2f}, lookups of {_ms(row.number('lookup_ms'))} included"))
    for row in result.children("lookup"):
        what = f"Lookup in {row.integer('forms'):,} made-up names, {row.string('machinery')}"
        times = " and ".join(f"{name} {row.number(f'{name}_us'):,.0f} µs" for name in ("p50", "p99"))
        size = f"{row.integer('bytes') / 1e6:,.0f} MB, built in {row.number('build_s'):.1f} s"
        rows.append((what, f"{times}; {size}, 1,000 more in {_ms(1e3 * row.number('update_s'))}"))
    return rows


def _load(result: Reader) -> list[Row]:
    peak = result.number("peak_per_s")
    within = [row for row in result.children("rows") if row.number("rate_per_s") <= 0.75 * peak][-1]
    said = f"{peak:.0f} answers a second at most; p50 {_ms(within.number('p50_ms'))} and "
    said += f"p99 {_ms(within.number('p99_ms'))} at {within.number('rate_per_s'):.0f} a second"
    return [("One core, the demo's mentions, half of them with an image, nothing cached", said)]


def _overload(result: Reader) -> list[Row]:
    said = f"{result.number('throughput_share'):.0%} of the peak answered, p99 "
    said += f"{result.number('accepted_p99_ms') / 1e3:.1f} s; refusals within "
    said += f"{_ms(result.number('rejected_p99_ms'))} (p99)"
    return [(f"The same at {result.number('times'):g} times its peak", said)]


def _overhead(result: Reader) -> list[Row]:
    text, jpeg = result.child("text"), result.child("jpeg")
    size = jpeg.number("picture_bytes") / 1e3
    return [
        (f"What HTTP adds to `Linker.link`, one client, {what}", f"{_ms(part.number('difference_ms'))}")
        for what, part in (("text", text), (f"a JPEG of {size:.0f} KB", jpeg))
    ]


def _soak(result: Reader) -> list[Row]:
    changes = result.child("changes")
    counts = ", ".join(f"{changes.integer(name):,} {name}" for name in ("upserts", "deletes", "reloads"))
    said = f"{result.integer('requests'):,} answers, {result.integer('errors')} errors; memory "
    said += f"{result.number('memory_growth_share', low=-1):+.1%} at the end"
    return [(f"{result.number('seconds') / 60:.0f} minutes of load with {counts}", said)]


def _fuzz(result: Reader) -> list[Row]:
    cases = sum(result.child("cases").integer(name) for name in result.child("cases").data)
    faults = result.integer("internal_errors")
    return [
        (
            f"{result.number('seconds') / 60:.0f} minutes of fuzzing",
            f"{cases:,} cases, {faults} internal errors",
        )
    ]


def _kill(result: Reader) -> list[Row]:
    said = (
        f"{result.integer('changes_found')} of {result.integer('changes_acknowledged')} acknowledged changes "
    )
    said += f"found, {result.integer('changes_found_in_part')} in part"
    return [(f"A writer killed {result.integer('kills')} times while a reader queried", said)]


def _train_step(result: Reader) -> list[Row]:
    return [
        (
            f"A step of {row.integer('batch')} mentions, {row.string('model')}, subnormal numbers as zero",
            f"{row.number('zeros_s'):.2f} s; with subnormal numbers {row.number('denormals_s'):.2f} s",
        )
        for row in result.children("rows")
    ]


def _encoders(result: Reader) -> list[Row]:
    rows = [r for r in result.children("rows") if r.string("graph") == "mention" and r.integer("batch") == 1]
    times = ", ".join(
        f"{r.string('backend')} {r.string('precision')} {_ms(r.number('p50_ms'))}" for r in rows
    )
    return [
        (
            "Encoding and folding one mention with an image, two ViT-B-sized encoders with random weights",
            times,
        )
    ]


def _engines(result: Reader) -> list[Row]:
    rows = result.children("rows")
    seconds = sum(row.number("seconds") for row in rows)
    target = ", ".join(dict.fromkeys(row.string("target") for row in rows))
    said = f"{len(rows)} in {seconds / 60:.0f} minutes; none of them has run"
    return [(f"Engines of {result.string('library')} for {target}, built without a GPU", said)]


def _kernels(result: Reader) -> list[Row]:
    rows = result.children("rows")
    kernels = {row.string("kernel") for row in rows}
    targets = ", ".join(f"sm_{sm}" for sm in sorted({row.integer("sm") for row in rows}))
    spilling = sum(row.integer("spills") > 0 for row in rows)
    said = f"{len(rows)} compilations, {spilling} that spill registers"
    return [(f"{len(kernels)} Triton kernels compiled for {targets}", said)]


@dataclass(frozen=True, slots=True)
class Topic:
    """Results that stand in one table, by the names of their files, and what to know about them."""

    title: str
    results: dict[str, Callable[[Reader], list[Row]]]
    note: str = ""


TOPICS = (
    Topic(
        "Accuracy",
        {
            "demo": _demo,
            "wikimel": _ranking("test", "WikiMEL test"),
            "richpediamel": _ranking("dev", "RichpediaMEL dev"),
            "int8": _quantised("int8"),
            "fp8": _quantised("fp8"),
        },
        _ACCURACY,
    ),
    Topic(
        "The scan, on two CPU cores",
        {"scan_cpu": _scan, "scan_agreement": _agreement, "scan_baselines": _libraries},
        _SCAN,
    ),
    Topic("Names", {"names": _names}, _NAMES),
    Topic(
        "The service",
        {"load": _load, "overload": _overload, "overhead": _overhead, "soak": _soak, "fuzz": _fuzz},
        _SERVICE,
    ),
    Topic("The index on disk", {"kill": _kill}),
    Topic(
        "Training and encoders, on CPUs",
        {"train_step": _train_step, "encoders": _encoders},
    ),
    Topic("Compiled for GPUs, not run", {"engines": _engines, "kernels_aot": _kernels}),
)
ELSEWHERE = {"scan_growth": "[scale.md](scale.md)"}  # results with a page of their own


def render(folder: Path = RESULTS) -> str:
    """Give the page in Markdown.

    Raises
    ------
    DataError
        If a result file is missing or damaged, or a key is missing or wrong; names file and key.
    """
    lines, sources = [_HEAD.rstrip(), ""], []
    for topic in TOPICS:
        rows = []
        for stem, read in topic.results.items():
            result = open_result(folder / f"{stem}.json")
            rows += [[what, said, f"`{stem}.json`"] for what, said in read(result)]
            sources.append(_source(result))
        lines += [f"## {topic.title}", "", *_table(["Measured", "Result", "File"], rows)]
        lines += [topic.note, ""] if topic.note else []
    sources += [_source(open_result(folder / f"{stem}.json")) for stem in ELSEWHERE]
    head = ["File", "Command", "Commit", "Date", "Cores"]
    lines += ["## Where the numbers come from", "", *_table(head, sorted(sources))]
    return "\n".join(lines).rstrip() + "\n"


def _source(result: Reader) -> list[str]:
    made = read_provenance(result)
    commit = (made.commit or "none")[:12] + (" with changes" if made.dirty else "")
    cells = [f"`{result.file.name}`", f"`{made.command}`", commit, made.date[:10]]
    return [*cells, str(made.cores)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of texts: every column to the left."""
    lines = table(head, rows)
    return [lines[0], "|" + "---|" * len(head), *lines[2:]]


def _points(result: Reader, path: str) -> str:
    """A share at a path of keys, with three digits."""
    *folders, key = path.split("/")
    for folder in folders:
        result = result.child(folder)
    return f"{result.number(key, high=1):.3f}"


def _correct(ranking: Reader) -> int:
    """Mentions whose best candidate is the answer."""
    return round(ranking.number("hits@1") * ranking.integer("mentions"))


def _size(row: Reader) -> tuple[int, int]:
    return row.integer("n"), row.integer("b")


def _mentions(count: int) -> str:
    return "one mention" if count == 1 else f"{count} mentions together"


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; 0, or 2 with a message on an error that has one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report.results_page", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS, help="folder of result files")
    parser.add_argument("--out", type=Path, default=PAGE, help="page to write (default: docs/results.md)")
    args = parser.parse_args(argv)
    try:
        page = render(args.results)
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out, page.encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
