"""Declarations: what is read, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.experiments.declaration import FOLDER, find_experiment, read_experiment
from benchmarks.experiments.options import GIVEN, known_options
from benchmarks.experiments.probes import PROBES
from mimic_engine.errors import InvalidInputError

HEAD = 'title = "T"\nquestion = "Q"\nexpected = "E"\n'


def _read(tmp_path: Path, text: str, probes=PROBES):
    path = tmp_path / "own.toml"
    path.write_text(text, "utf-8")
    return read_experiment(path, probes)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_declaration_can_be_read(path):
    experiment = read_experiment(path, PROBES)
    assert experiment.name == path.stem
    assert experiment.data and len(experiment.configurations) >= 2
    assert find_experiment(path.stem) == path


def test_what_is_asked_of_the_shipped_ones():
    ablation = read_experiment(find_experiment("ablation"), PROBES)
    options = {c.name: c.options for c in ablation.configurations}
    table = ablation.two_by_two
    assert [
        (options[n].get("vision", "vdlu"), options[n].get("unit_losses", "all")) for n in table.configurations
    ] == [
        ("concat", "none"),
        ("vdlu", "none"),
        ("concat", "all"),
        ("vdlu", "all"),
    ]
    rates = read_experiment(find_experiment("rates"), PROBES)
    assert [c.options["lr"] for c in rates.configurations] == [5e-6, 1e-5, 2e-5, 1e-4, 5e-4, 1e-3]


def test_common_options_grid_and_configurations_come_together(tmp_path):
    text = HEAD + (
        '[options]\nepochs = 3\nlr = 1\n[[configuration]]\nname = "a"\noptions = { epochs = 4 }\n'
        '[grid]\nlr = [1e-5, 2e-5]\nvision = ["vdlu", "off"]\nunit_losses = ["tglu,cmfu"]\n'
    )
    first, *grid = _read(tmp_path, text).configurations
    assert (first.name, first.options, first.train_on) == ("a", {"epochs": 4, "lr": 1.0}, "own")
    assert type(first.options["lr"]) is float
    assert [c.name for c in grid] == [
        "lr=1e-05,vision=vdlu,unit_losses=tglu+cmfu",
        "lr=1e-05,vision=off,unit_losses=tglu+cmfu",
        "lr=2e-05,vision=vdlu,unit_losses=tglu+cmfu",
        "lr=2e-05,vision=off,unit_losses=tglu+cmfu",
    ]
    assert grid[3].options == {"epochs": 3, "lr": 2e-5, "vision": "off", "unit_losses": "tglu,cmfu"}


ONE = '[[configuration]]\nname = "a"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = 3", r"own\.toml: title: 3 is not a text"),
        ('title = "T"', r"own\.toml: question: is missing"),
        ("[", r"own\.toml: cannot be read as TOML"),
        (HEAD, r"own\.toml: declares no \[\[configuration\]\] and no \[grid\]"),
        (HEAD + "colour = 1\n" + ONE, r"own\.toml: key: 'colour' is not one of name, title, question"),
        (HEAD + "[options]\nlrr = 1\n" + ONE, r"options: unknown option 'lrr'; known ones are max_length, "),
        (HEAD + "[options]\nseed = 1\n" + ONE, r"options: option 'seed' is given on the command line"),
        (HEAD + '[options]\nlr = "x"\n' + ONE, r"options: option 'lr': 'x' is of type str, not float"),
        (HEAD + "[options]\nepochs = 2.5\n" + ONE, r"option 'epochs': 2.5 is of type float, not int"),
        (HEAD + "[options]\nepochs = true\n" + ONE, r"option 'epochs': True is of type bool, not int"),
        (HEAD + "[options]\nlr = true\n" + ONE, r"option 'lr': True is of type bool, not float"),
        (HEAD + "[options]\ntglu = 1\n" + ONE, r"option 'tglu': 1 is of type int, not bool"),
        (HEAD + '[options]\nvision = "x"\n' + ONE, r"option 'vision': 'x' is not one of vdlu, concat, off"),
        (HEAD + "[options]\nvision = 1\n" + ONE, r"option 'vision': 1 is not one of vdlu, concat, off"),
        (
            HEAD + "[options]\nencoder_lr = []\n" + ONE,
            r"option 'encoder_lr': \[\] is of type list, not float",
        ),
        (
            HEAD + "[options]\nlr = -1\n" + ONE,
            r"own\.toml: configuration 1 \(a\): --lr: -1.0 is not positive",
        ),
        (HEAD + "[grid]\nlr = [1e-3, -1]", r"own\.toml: configuration lr=-1: --lr: -1.0 is not positive"),
        (HEAD + "[grid]\nlr = 3", r"own\.toml: grid: 'lr' is 3, not a list of values"),
        (HEAD + "[grid]\nlr = []", r"own\.toml: grid: 'lr' is \[\], not a list of values"),
        (HEAD + ONE + ONE, r"own\.toml: two configurations are named 'a'"),
        (HEAD + "[grid]\nlr = [1e-3, 1e-3]", r"two configurations are named 'lr=0.001'"),
        (HEAD + ONE + "size = 1", r"configuration 1: key: 'size' is not one of name, options, train_on"),
        (HEAD + ONE + 'train_on = "x"', r"configuration 1 \(a\): train_on: 'x' is not one of own, others"),
        (HEAD + '[[configuration]]\nname = "a/b"', r"configuration 1: name: 'a/b' is not made of letters"),
        (HEAD + '[[configuration]]\nname = ".."', r"configuration 1: name: '\.\.' is not made of letters"),
        (HEAD + "[configuration]\n", r"own\.toml: configuration: is declared as \[\[configuration\]\]"),
        (HEAD + "configuration = [1]\n", r"configuration 1: 1 is not a table"),
        (HEAD + "options = 1\n" + ONE, r"own\.toml: options: 1 is not a table"),
        (HEAD + 'baseline = "b"\n' + ONE, r"own\.toml: baseline: 'b' is not one of a"),
        (HEAD + 'probes = ["b"]\n' + ONE, r"own\.toml: probes: 'b' is not one of answers, calibration"),
        (HEAD + ONE + "[found]\ndemo = 1\n", r"own\.toml: found: demo: 1 is not a text"),
        (HEAD + "timed = 1\n" + ONE, r"own\.toml: timed: 1 is not true or false"),
        (HEAD + 'probes = "seen"\n' + ONE, r"own\.toml: probes: 'seen' is not a list of texts"),
        (HEAD + ONE + "[two_by_two]\n", r"own\.toml: two_by_two: first: is missing"),
        (
            HEAD
            + ONE
            + '[two_by_two]\nfirst="f"\nsecond="s"\nneither="a"\nonly_first="b"\nonly_second="a"\nboth="a"',
            r"own\.toml: two_by_two: 'b' is not one of a",
        ),
    ],
)
def test_a_wrong_declaration_is_refused(tmp_path, text, message):
    with pytest.raises(InvalidInputError, match=message) as caught:
        _read(tmp_path, text)
    assert "\n" not in str(caught.value).split("TOML")[0]


def test_an_unknown_experiment_lists_the_known_ones(tmp_path):
    with pytest.raises(InvalidInputError, match="'x' is not one of ablation, "):
        find_experiment("x")
    with pytest.raises(InvalidInputError, match=r"no file .*x\.toml"):
        find_experiment(str(tmp_path / "x.toml"))
    with pytest.raises(InvalidInputError, match=r"x\.toml: cannot be read as TOML"):
        read_experiment(tmp_path / "x.toml", PROBES)


def test_every_option_of_a_training_is_declared_or_given():
    assert "lr" in known_options() and not GIVEN & set(known_options())
