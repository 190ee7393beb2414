"""The embedded demo end to end on real data: fetched encoders and texts, shipped weights, the engine's answers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.demo import measure
from mimic_engine import Linker
from mimic_engine.demo import read_demo
from mimic_engine.demo.examples import load_examples
from mimic_engine.demo.match import Tables
from mimic_engine.demo.prepare import prepare_demo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cache() -> Path:
    folder = os.environ.get("MIMIC_DEMO_CACHE")
    if not folder:
        pytest.skip("MIMIC_DEMO_CACHE is not set: no folder to fetch the demo's packages into")
    return Path(folder)


@pytest.fixture(scope="module")
def paths(cache):
    return prepare_demo(cache, progress=False)


@pytest.fixture(scope="module")
def linker(paths):
    linker = Linker.open(paths.model, paths.index)
    yield linker
    linker.close()


def test_the_picture_helps_where_names_are_ambiguous(linker, paths):
    result = measure(linker, read_demo(paths.data).challenge, {"all": ""})["all"]
    assert result["both"]["mentions"] >= 100
    assert result["both"]["hits@1"] >= 0.8
    assert result["both"]["hits@1"] >= result["text"]["hits@1"] + 0.05


def test_unseen_drawing_styles_are_linked(linker, paths):
    mentions = read_demo(paths.data).mentions["test"][::8]
    result = measure(linker, mentions, {"all": ""})["all"]
    assert result["both"]["hits@1"] >= 0.9


def test_the_examples_of_the_page_link_to_what_is_meant(linker, paths):
    examples = load_examples(paths.data)
    assert len({e.mention.sentence for e in examples}) < len(examples)  # some differ in their picture alone
    results = linker.link([e.mention for e in examples], top_k=1)
    assert [r.candidates[0].id for r in results] == [e.answer for e in examples]


def test_aliases_are_of_entities_and_find_them(linker, paths):
    entities = {e.name: e for e in read_demo(paths.data).entities}
    aliases = Tables.load().aliases
    assert aliases.keys() <= entities.keys()
    for name, own in aliases.items():
        assert entities[name].aliases == own
        assert entities[name].id in [match.id for match in linker.index.find_names(own[0], 10)]


def test_names_help_where_the_model_alone_is_wrong(linker, paths):
    mentions = read_demo(paths.data).mentions["test"][::8]
    result = measure(linker, mentions, {"all": ""})["all"]
    assert result["text_with_names"]["hits@1"] >= result["text"]["hits@1"] + 0.05


def test_a_later_start_needs_no_torch(paths, cache):
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None, onnx=None)\n"
        "from pathlib import Path; from mimic_engine.demo.prepare import prepare_demo\n"
        "from mimic_engine import Linker, Mention\n"
        f"paths = prepare_demo(Path({str(cache)!r}))\n"
        "linker = Linker.open(paths.model, paths.index)\n"
        "[r] = linker.link([Mention('Jordan', 'Amman is the capital of Jordan.')], 3)\n"
        "print(r.candidates[0].name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Jordan\n"
