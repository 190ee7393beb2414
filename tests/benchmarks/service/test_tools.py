"""Load, overload and soak in tiny runs against a real process, and overhead against the real engine."""

import argparse
import asyncio
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks.durability.changes import admin_options
from benchmarks.service import load, overhead, overload, soak
from benchmarks.service.open_loop import Question
from benchmarks.service.process import ServiceProcess, serve_command
from benchmarks.service.workload import Scene, add_arguments, body_of, choose, leave_cores
from mimic_engine.engine.linker import Linker
from mimic_engine.errors import DataError, EngineError
from mimic_engine.provenance import HEADER
from mimic_engine.types import Mention

WORD_LINKER = Path(__file__).parents[2] / "server" / "word_linker.py"
MENTIONS = [Mention("Jordan", f"the river number {i}") for i in range(6)]
TOP_K = 2


@pytest.fixture(scope="module")
def questions():
    """Bodies with their right answers: the small linker ranks by the share of an entity's words."""
    spec = importlib.util.spec_from_file_location("word_linker", WORD_LINKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [Question(body_of(m, TOP_K), TOP_K, ranked(m, module.ENTITIES)) for m in MENTIONS]


def ranked(mention, entities):
    words = set(f"{mention.mention} {mention.sentence}".lower().split())
    owns = {e.id: set(f"{e.name} {e.description}".lower().split()) for e in entities}
    scores = {id_: len(words & own) / len(own) for id_, own in owns.items()}
    return tuple(sorted(scores.items(), key=lambda pair: -pair[1])[: TOP_K + 1])


def service(device_s, **options):
    given = [f"{name}={value}" for name, value in options.items()]
    own = ["env", f"PYTHONPATH={WORD_LINKER.parents[2]}"]  # a script's path has its own folder alone
    return ServiceProcess([*own, sys.executable, str(WORD_LINKER), "0", str(device_s), *given])


def test_a_sweep_finds_the_rate_at_which_the_service_falls_behind(questions):
    with service(0.02, max_batch_size=1, max_queue_size=4, max_mentions=1) as running:
        rows = asyncio.run(
            load.sweep(running.address, questions, seconds=0.6, settle_s=0.1, factor=2.0, beyond=1)
        )
    assert not load.saturated(rows[0])
    assert load.saturated(rows[-1])
    assert load.peak(rows) <= 1 / 0.02 * 1.5  # a batch of one takes so long on the device
    assert rows[-1].rejected > 0
    assert all(r.p50_ms <= r.p95_ms <= r.p99_ms for r in rows)
    assert 0 <= rows[0].queue_share <= 1


def test_an_overload_is_compared_with_the_peak(questions):
    with service(0.02, max_batch_size=1, max_queue_size=4, max_mentions=1) as running:
        result = asyncio.run(overload.measure(running, questions, seconds=0.8, settle_s=0.2, factor=2.0))
    assert 0 < result["throughput_share"] < 2
    assert result["accepted_p99_ms"] > 0 and result["rejected_p99_ms"] > 0
    assert result["row"]["rejected"] > 0
    assert result["memory_before_bytes"] > 1_000_000


def test_what_is_no_overload_is_no_result(questions, monkeypatch):
    monkeypatch.setattr(overload, "TIMES", 0.2)
    with service(0.02, max_batch_size=1, max_queue_size=4, max_mentions=1) as running:
        measure = overload.measure(running, questions, seconds=0.5, settle_s=0.1, factor=3.0)
        with pytest.raises(EngineError, match="this is no overload"):
            asyncio.run(measure)


def test_a_soak_counts_requests_errors_and_memory(questions):
    with admin_options() as (_, key_file), service(0.001, admin_key_file=key_file) as running:
        result = asyncio.run(soak.soak(running, questions, seconds=1.5, rate_per_s=40))
    assert (result["errors"], result["rejected"]) == (0, 0)
    assert result["requests"] == pytest.approx(60, abs=2)
    assert result["rows"][-1]["memory_bytes"] > 1_000_000
    assert result["memory_growth_share"] == pytest.approx(
        result["memory_last_bytes"] / result["memory_first_bytes"] - 1
    )


def test_a_wrong_answer_ends_a_soak(questions):
    wrong = [Question(q.body, q.top_k, tuple((i, s + 1) for i, s in q.answer)) for q in questions]
    with service(0.001) as running, pytest.raises(ExceptionGroup) as raised:
        asyncio.run(soak.soak(running, wrong, seconds=1, rate_per_s=20))
    assert raised.group_contains(EngineError, match="wrong answer")


def test_a_service_that_cannot_start_gives_its_log():
    with pytest.raises(EngineError, match=r"status 1 before it was ready(.|\n)*no-such-model"):  # noqa: SIM117
        with ServiceProcess(serve_command(Path("no-such-model"), Path("no-such-index"))):
            pass


# -- the whole commands, on the tiny model ------------------------------------------------------------


@pytest.fixture(scope="module")
def arguments(tiny_model, tiny_index, tiny_picture, tmp_path_factory):
    """Command line that names the tiny model, its index and a few mentions."""
    file = tmp_path_factory.mktemp("mentions") / "mentions.jsonl"
    records = [{"mention": a, "sentence": f"{a} {b} c"} for a in "abcd" for b in "efgh"]
    records[3]["image"] = str(tiny_picture)
    file.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    names = {"model": tiny_model, "index": tiny_index, "mentions": file, "threads": 1}
    return [word for name, value in names.items() for word in (f"--{name}", str(value))]


def test_load_writes_rows_by_rate(arguments, tmp_path):
    out = tmp_path / "load.json"
    assert (
        load.main([*arguments, "--seconds", "0.3", "--settle", "0", "--factor", "2.5", "--out", str(out)])
        == 0
    )
    result = json.loads(out.read_text())
    assert set(HEADER) <= set(result)
    assert result["peak_per_s"] == max(r["throughput_per_s"] for r in result["rows"])


def test_soak_writes_its_result_and_leaves_the_index_alone(arguments, tiny_index, tmp_path):
    out, before = tmp_path / "soak.json", sorted(tiny_index.rglob("*"))
    assert soak.main([*arguments, "--minutes", "0.02", "--rate", "20", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["errors"] == 0
    assert sorted(tiny_index.rglob("*")) == before


def test_overhead_compares_the_same_answers(tiny_model, tiny_index):
    mentions = [Mention(a, f"{a} {b}") for a in "abc" for b in "defg"]
    linker = Linker.open(tiny_model, tiny_index, threads=1)
    try:
        with ServiceProcess(serve_command(tiny_model, tiny_index, ["--threads", "1"])) as running:
            result = overhead.measure(linker, running.address, mentions)
    finally:
        linker.close()
    for row in result.values():
        assert row["rounds"] == len(mentions) - overhead.WARM
        assert row["difference_ms"] == pytest.approx(row["http_ms"] - row["link_ms"])
    assert result["text"]["decode_ms"] == 0 < result["jpeg"]["decode_ms"]
    assert result["jpeg"]["picture_bytes"] == pytest.approx(80_000, rel=0.25)


def test_overhead_refuses_a_service_that_answers_otherwise(tiny_model, tiny_index, monkeypatch):
    monkeypatch.setattr(overhead, "TOP_K", 2)
    linker = Linker.open(tiny_model, tiny_index, threads=1)
    try:
        with service(0.0) as running, pytest.raises(EngineError, match="wrong answer"):
            overhead.measure(linker, running.address, [Mention("a", "a b")])
    finally:
        linker.close()


def test_a_scene_needs_all_of_its_files_or_none(tiny_model):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(DataError, match="name all of --model, --index and --mentions"):
        Scene.open(parser.parse_args(["--model", str(tiny_model)]))
    args = parser.parse_args(["--threads", "2", "--serve", "--max-queue-size", "64"])
    command = Scene(Path("m"), Path("i"), ()).command(args)
    assert command[-4:] == ["--threads", "2", "--max-queue-size", "64"]


def test_the_service_gets_its_cores_and_the_load_keeps_off_them(monkeypatch):
    taken = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: taken.append(cores), raising=False)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["--cores", "0,4"])
    assert Scene(Path("m"), Path("i"), ()).command(args)[:4] == [
        "taskset",
        "--cpu-list",
        "0,4",
        sys.executable,
    ]
    leave_cores(args)
    leave_cores(parser.parse_args([]))
    assert taken == [{1}]
    for wrong in ("0,1,4", "2"):
        with pytest.raises(DataError, match=r"--cores: .* must be some, and not all, of \[0, 1, 4\]"):
            leave_cores(parser.parse_args(["--cores", wrong]))


def test_mentions_are_chosen_by_kind_and_always_the_same():
    given = [Mention("a", f"a {i}", b"x" if i % 2 else None) for i in range(10)]
    assert {m.image for m in choose(given, "text", 20)} == {None}
    assert all(m.image for m in choose(given, "picture", 20))
    assert choose(given, "mixed", 4) == choose(given, "mixed", 4)
    assert len(choose(given, "mixed", 4)) == 4
