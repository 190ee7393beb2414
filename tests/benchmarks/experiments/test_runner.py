"""Whole experiments on tiny data: what is trained, resumed, refused, tested and written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import benchmarks.experiments.runner as runner_module
from benchmarks.experiments import probe_plots
from benchmarks.experiments.__main__ import main
from benchmarks.experiments.data import open_data
from benchmarks.experiments.declaration import read_experiment
from benchmarks.experiments.probes import PROBES
from benchmarks.experiments.results import Outcome, RunResult
from benchmarks.experiments.runs import read_test
from mimic_engine.errors import DataError, InvalidInputError
from mimic_engine.metrics import ranking_metrics
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.encode import fold_mentions
from mimic_engine.train.ranking import entity_scan
from mimic_engine.train.run import train
from mimic_engine.train.trainer import Trainer

# Kills itself without warning in the second epoch of the second run.
KILLED = """
import os, signal, sys
from benchmarks.experiments.__main__ import main
from mimic_engine.train.trainer import Trainer
step = Trainer.step
def killing(trainer, batches):
    if trainer.config.tglu and trainer.config.seed == 1 and trainer.progress.step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(trainer, batches)
Trainer.step = killing
sys.exit(main())
"""


def _runs(path: Path) -> dict[tuple[str, int], dict]:
    result = json.loads(path.read_text())
    return {(c["name"], r["seed"]): r for c in result["configurations"] for r in c["runs"]}


def _without_times(run: dict) -> dict:
    curve = [{k: v for k, v in row.items() if "seconds" not in k} for row in run["curve"]]
    return {k: run[k] for k in ("status", "dev", "test", "steps", "epochs")} | {"curve": curve}


def test_every_run_is_trained_tested_and_reported(runner, tmp_path):
    path = runner().run()
    assert path == tmp_path / "out" / "tiny-tiny.json"
    result = json.loads(path.read_text())
    assert [c["name"] for c in result["configurations"]] == ["full", "no-text"]
    assert result["experiment"]["question"] == "What does the text unit add?"
    assert result["data"]["test_is"] == "test split"
    assert result["data"]["mentions"] == {"train": 36, "dev": 18, "test": 12}
    for c in result["configurations"]:
        assert [r["seed"] for r in c["runs"]] == [0, 1]
        for run in c["runs"]:
            assert run["status"] == "done" and "message" not in run
            assert (run["dev"]["candidates"], run["test"]["mentions"], run["steps"]) == (18, 12, 6)
            assert [row["epoch"] for row in run["curve"]] == [1, 2]
            assert run["dev"]["mrr"] == max(row["mrr"] for row in run["curve"])
            assert run["commit"] is None or len(run["commit"]) == 40
    assert len(list((tmp_path / "out" / "runs").glob("*/*/result.json"))) == 4
    assert not list((tmp_path / "out" / "runs").rglob("last.pt"))
    full, no_text = result["configurations"]
    assert no_text["options"] == full["options"] | {"tglu": False}
    assert full["options"]["cache_dtype"] == "float16" and "eps" not in full["options"]
    assert full["difference"]["test"]["mrr"] == {"mean": 0, "std": 0, "n": 2}
    assert no_text["difference"]["dev"]["mrr"]["mean"] == pytest.approx(
        no_text["summary"]["dev"]["mrr"]["mean"] - full["summary"]["dev"]["mrr"]["mean"]
    )
    table = (tmp_path / "out" / "tiny-tiny.md").read_text()
    assert f"{full['summary']['test']['hits@1']['mean']:.4f} ± " in table
    assert (tmp_path / "out" / "tiny-tiny.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_the_training_that_its_options_say(runner, options, tmp_path):
    run = _runs(runner(seeds=1).run())["full", 0]
    config: TrainConfig = options(out=tmp_path / "alone", cache_dtype="float16", seed=0)
    progress = train(config)
    assert [row["loss"] for row in run["curve"]] == [row["loss"] for row in progress.rows]
    assert run["dev"]["mrr"] == progress.best_mrr


def test_a_killed_experiment_goes_on_and_gives_the_same(runner, declared, setting, data, tmp_path):
    declared()
    whole = _runs(runner(out=tmp_path / "whole").run())
    s = setting()
    command = ["tiny.toml", "--data", data, "--out", s.out, "--cache", s.cache, "--seeds", "2"]
    command += ["--threads", "1", "--device", "cpu"]
    command += ["--encoder", s.encoder, "--text-source", s.text_source, "--image-source", s.image_source]
    died = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, command)], cwd=tmp_path, env=_environment()
    )
    assert died.returncode == -signal.SIGKILL
    [begun] = (s.out / "runs").rglob("last.pt")
    [finished] = (s.out / "runs").rglob("result.json")
    assert (begun.parent.name, finished.parent.name) == ("1", "0")
    first = finished.read_bytes()
    again = _runs(runner().run())
    assert finished.read_bytes() == first
    assert {k: _without_times(r) for k, r in again.items()} == {
        k: _without_times(r) for k, r in whole.items()
    }


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(runner_module.__file__).parents[2])}


def test_what_is_finished_is_not_done_again(runner, monkeypatch, tmp_path):
    runner().run()
    before = {p: p.read_bytes() for p in (tmp_path / "out" / "runs").rglob("*.json")}
    monkeypatch.setattr(runner_module, "finish_run", None)
    monkeypatch.setattr(runner_module, "read_test", None)
    runner().run()
    assert {p: p.read_bytes() for p in (tmp_path / "out" / "runs").rglob("*.json")} == before


def test_test_is_read_when_every_run_is_finished(runner, tmp_path):
    first = _runs(runner(only=("no-text",)).run())
    assert {key: run["test"] for key, run in first.items()} == {("no-text", 0): None, ("no-text", 1): None}
    assert not list((tmp_path / "out").rglob("test.json"))
    whole = _runs(runner().run())
    assert len(whole) == 4 and all(run["test"] for run in whole.values())
    more = _runs(runner(seeds=3).run())
    assert len(more) == 6
    assert all(more[key] == run for key, run in whole.items())


def test_a_diverged_run_is_reported_and_left_out_of_means(runner, declared, tmp_path):
    wild = '[[configuration]]\nname = "wild"\noptions = { lr = 1e30 }\n'
    path = runner(declared(more=wild), only=("full", "wild", "no-text")).run()
    runs = _runs(path)
    assert {key[0] for key, run in runs.items() if run["status"] == "diverged"} == {"wild"}
    assert "the loss is" in runs["wild", 0]["message"] and "test" in runs["wild", 0]
    wild_entry = json.loads(path.read_text())["configurations"][2]
    assert len(wild_entry["runs"]) == 2
    assert wild_entry["summary"]["test"]["mrr"] == {"mean": None, "std": None, "n": 0}
    table = path.with_suffix(".md").read_text()
    assert "| wild | - | - | - | - | - | - | - | - | 0, 2 diverged |" in table
    assert "- wild, seed 1: step 2: the loss is" in table
    before = _results(tmp_path / "out" / "runs")
    runner(declared(more=wild)).run()
    assert _results(tmp_path / "out" / "runs") == before


def test_another_error_names_the_run(runner, monkeypatch):
    def broken(trainer, batches):
        raise DataError("no more pictures")

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(DataError, match="no more pictures") as caught:
        runner().run()
    assert caught.value.__notes__ == ["in run full, seed 0"]


def _results(runs: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in sorted(runs.rglob("result.json"))}


def test_a_changed_declaration_or_data_set_makes_other_runs_beside_the_old_ones(
    runner, declared, data, tmp_path, setting
):
    first = _runs(runner(seeds=1).run())
    results = _results(tmp_path / "out" / "runs")
    runner(declared(("A lot.", "Little."), ("no-text", "without-text")), seeds=1).run()
    assert _results(tmp_path / "out" / "runs") == results
    slower = _runs(runner(declared(("lr = 3e-3", "lr = 1e-3")), seeds=1).run())
    assert slower["full", 0]["curve"] != first["full", 0]["curve"]
    changed = tmp_path / "changed"
    shutil.copytree(data, changed)
    lines = (changed / "dev.jsonl").read_text().splitlines(keepends=True)
    (changed / "dev.jsonl").write_text("".join(lines[1:]))
    experiment = read_experiment(declared(), ())
    other = runner_module.Runner(experiment, open_data(changed, "tiny"), setting(seeds=1), {})
    assert _runs(other.run())["full", 0]["dev"]["mentions"] == 17
    now = _results(tmp_path / "out" / "runs")
    assert len(now) == 6 and {p: now[p] for p in results} == results
    assert _runs(runner(declared(), seeds=1).run()) == first


def test_other_encoders_make_other_runs(runner, encoders, tmp_path):
    from safetensors.torch import load_file, save_file

    runner(seeds=1).run()
    folder = tmp_path / "bert"
    shutil.copytree(encoders[0], folder)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v * 1.5 for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    runner(seeds=1, text_source=str(folder)).run()
    assert len(_results(tmp_path / "out" / "runs")) == 4


def test_experiments_share_the_runs_that_they_have_in_common(runner, declared, monkeypatch, tmp_path):
    """The second declares the first's configurations by other names, one more, and asks a probe."""
    first = _runs(runner(runs=tmp_path / "runs", out=tmp_path / "a").run())
    trained = []
    finish = runner_module.finish_run
    monkeypatch.setattr(runner_module, "finish_run", lambda c, *a: trained.append(c) or finish(c, *a))
    monkeypatch.setattr(runner_module, "read_test", lambda run: _not_read_again(run, finished))
    finished = set(_results(tmp_path / "runs"))
    path = declared(
        ('"full"\n[options]', '"everything"\nprobes = ["answer"]\n[options]'),
        ('name = "full"', 'name = "everything"'),
        more='[[configuration]]\nname = "slow"\noptions = { lr = 1e-4 }\n',
    )
    probe = {"answer": lambda run, split: {"lr": run.config.lr}}
    second = _runs(runner(path, probe, runs=tmp_path / "runs", out=tmp_path / "b").run())
    assert {config.lr for config in trained} == {1e-4} and len(trained) == 2
    for seed in (0, 1):
        assert second["everything", seed] == first["full", seed] | {"probes": {"answer": {"lr": 3e-3}}}
    described = json.loads(next(iter(finished)).parents[1].joinpath("run.json").read_text())
    assert described["options"]["lr"] == 3e-3 and described["train_on"] == "own"


def _not_read_again(run, finished):
    assert run.config.out / "result.json" not in finished
    return read_test(run)


def test_two_processes_do_not_train_the_same_run(runner, monkeypatch, tmp_path):
    """The second waits for the first, and takes its result."""
    trained = []
    finish = runner_module.finish_run
    monkeypatch.setattr(
        runner_module, "finish_run", lambda c, *a: trained.append((c.tglu, c.seed)) or finish(c, *a)
    )
    builders = [runner(runs=tmp_path / "runs", out=tmp_path / name, seeds=1) for name in "ab"]
    with ThreadPoolExecutor(2) as pool:
        found = [_runs(path) for path in pool.map(lambda r: r.run(), builders)]
    assert sorted(trained) == [(False, 0), (True, 0)] and found[0] == found[1]


def test_configurations_are_timed_where_that_is_declared(runner, declared, tmp_path):
    path = runner(declared(('baseline = "full"', 'baseline = "full"\ntimed = true')), seeds=1).run()
    for one in json.loads(path.read_text())["configurations"]:
        assert one["timing"]["scan_entities"] == 18 and one["timing"]["step_seconds"] > 0
        assert set(one["runs"][0]["cost"]) < {*one["runs"][0]["cost"], *one["timing"]}
    assert "| s for the steps of a run |" in path.with_suffix(".md").read_text()
    untimed = json.loads(runner(declared(), seeds=1).run().read_text())["configurations"]
    assert not any("timing" in one for one in untimed)


def test_a_text_encoder_may_be_trained(runner, declared):
    runs = _runs(runner(declared(("lr = 3e-3", "lr = 3e-3\ntrain_text_encoder = true")), seeds=1).run())
    assert runs["full", 0]["test"]["mentions"] == 12


def test_probes_see_the_best_model_and_the_data(runner, declared):
    def again(run, split):
        assert split == "test"
        dev = run.encode.corpus.splits["dev"]
        with entity_scan(run.encode, 16) as scan:
            ranks = scan.ranks(fold_mentions(run.encode, dev.records, 16), dev.gold)
        rows = {e.id: i for i, e in enumerate(run.dataset.entities)}
        for name, mentions in run.dataset.splits.items():
            assert [rows[m.answer] for m in mentions] == run.encode.corpus.splits[name].gold.tolist()
        return ranking_metrics(ranks, 18).to_json()

    path = declared(("baseline", 'probes = ["again"]\nbaseline'))
    for run in _runs(runner(path, probes={"again": again}).run()).values():
        assert run["probes"]["again"] == run["dev"]


def test_the_probes_that_there_are_answer_and_are_drawn(runner, declared, tmp_path):
    path = declared(("baseline", 'probes = ["seen", "answers", "calibration", "pictures"]\nbaseline'))
    runs = _runs(runner(path, probes=PROBES, seeds=1).run())
    assert set(runs["full", 0]["probes"]) == {"seen", "answers", "calibration", "pictures"}
    assert runs["full", 0]["probes"]["seen"]["all"]["mrr"] == runs["full", 0]["test"]["mrr"]
    drawn = {p.name for p in (tmp_path / "out").glob("*.png")}
    assert drawn == {"tiny-tiny.png", "tiny-tiny-full-reliability.png", "tiny-tiny-no-text-reliability.png"}


@pytest.mark.parametrize(
    ("result", "kinds"),
    [
        ({"conclusive": False, "reason": "12 pictures"}, []),
        ({"conclusive": True, "gate": None}, ["pictures"]),
        ({"conclusive": True, "gate": {}}, ["pictures", "gates"]),
    ],
)
def test_images_and_gates_are_drawn_where_there_are_some(monkeypatch, tmp_path, result, kinds):
    drawn = []
    for kind in ("bad_images", "gates"):
        monkeypatch.setattr(probe_plots, f"draw_{kind}", lambda result, path: drawn.append((result, path)))
    run = RunResult(0, "done", None, {}, 1.0, 1, 1, [], None, None)
    tested = [Outcome(run, None, {}), Outcome(run, {}, {"pictures": result})]
    probe_plots.draw_probes({"a": tested, "b": []}, tmp_path, "stem")
    assert drawn == [(result, tmp_path / f"stem-a-{kind}.png") for kind in kinds]


def test_training_on_other_data_sets(runner, declared, data, tmp_path):
    """The other data set knows half of the entities, and two that this one lacks."""
    other = tmp_path / "other"
    shutil.copytree(data, other)
    kb = [json.loads(line) for line in (data / "kb.jsonl").read_text().splitlines()]
    known = {e["id"] for e in kb[:9]}
    kb = [*kb[:9], *({**e, "id": "X" + e["id"]} for e in kb[:2])]
    (other / "test.jsonl").unlink()
    (other / "kb.jsonl").write_text("".join(json.dumps(e) + "\n" for e in kb))
    for split in ("train", "dev"):
        mentions = [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]
        mentions = [
            m if i else {**m, "answer": "XE0"} for i, m in enumerate(mentions) if m["answer"] in known
        ]
        (other / f"{split}.jsonl").write_text("".join(json.dumps(m) + "\n" for m in mentions))

    def trained(run, split):
        answers = {m.answer for m in run.dataset.splits["train"]}
        gold = run.encode.corpus.splits["train"].gold
        assert {run.dataset.entities[row].id for row in gold} == answers
        return {"answers": len(answers), "mentions": len(gold)}

    path = declared(
        ("baseline", 'probes = ["trained"]\nbaseline'),
        ('"no-text"', '"elsewhere"'),
        ("options = { tglu = false }", 'train_on = "others"'),
    )
    with pytest.raises(DataError, match="--others: a configuration trains on other"):
        runner(path, probes={"trained": trained})
    result = runner(path, probes={"trained": trained}, others=(other, data), seeds=1).run()
    runs = _runs(result)
    assert runs["full", 0]["dev"]["candidates"] == 18
    assert runs["elsewhere", 0]["dev"]["candidates"] == 20  # both, joined: 18 and two of the other's own
    assert runs["elsewhere", 0]["test"]["candidates"] == 18
    assert runs["full", 0]["probes"]["trained"] == {"answers": 18, "mentions": 36}
    assert runs["elsewhere", 0]["probes"]["trained"] == {"answers": 18, "mentions": 36 + 17}
    content = json.loads(result.read_text())
    assert content["data"]["others"]["mentions"]["train"] == 36 + 18
    assert [list(one["difference"]) for one in content["configurations"]] == [["dev", "test"], ["test"]]
    dev = result.with_suffix(".md").read_text().split("## dev")[1]
    assert "Who trains on other data sets has their dev mentions" in dev
    assert "| elsewhere | " in dev and "|  |  |  |  | 1 |" in dev.split("| elsewhere |")[1].splitlines()[0]


def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path, data, declared, capsys):
    assert main(["nothing", "--data", str(data), "--out", str(tmp_path)]) == 1
    assert "'nothing' is not one of ablation" in capsys.readouterr().err
    assert main([str(declared()), "--data", str(data), "--out", str(tmp_path), "--seeds", "0"]) == 1
    assert capsys.readouterr().err == "error: --seeds: 0 is less than 1\n"
    arguments = [str(declared()), "--data", str(data), "--out", str(tmp_path), "--runs", __file__]
    assert main(arguments) == 1
    assert capsys.readouterr().err == f"error: --runs: {__file__} is not a folder\n"


def test_only_names_a_configuration(runner):
    with pytest.raises(InvalidInputError, match="--only: 'nothing' is not one of full, no-text"):
        runner(only=("nothing",))
