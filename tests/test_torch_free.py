"""The runtime does without the training packages: linking in a process where they cannot be imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mimic_engine import Linker, Mention

LINK = """
import sys
for name in ("torch", "transformers", "onnx", "onnxscript", "tensorboard", "matplotlib"):
    sys.modules[name] = None  # importing it now raises ModuleNotFoundError
import json
from mimic_engine import Linker, Mention
model, index, picture = sys.argv[1:]
linker = Linker.open(model, index, threads=1)
results = linker.link([Mention("a b", "c a b d", picture), Mention("c", "c d e")], 13)
linker.close()
print(json.dumps([[[c.id, c.score] for c in r.candidates] for r in results]))
"""


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


def test_a_mention_is_linked_where_torch_cannot_be_imported(tiny_model, tiny_index, tiny_picture):
    done = run(LINK, tiny_model, tiny_index, tiny_picture)
    assert done.returncode == 0, done.stderr
    linker = Linker.open(tiny_model, tiny_index, threads=1)
    here = linker.link([Mention("a b", "c a b d", tiny_picture), Mention("c", "c d e")], 13)
    linker.close()
    for found, expected in zip(json.loads(done.stdout), here, strict=True):
        assert [i for i, _ in found] == [c.id for c in expected.candidates]
        assert [s for _, s in found] == pytest.approx([c.score for c in expected.candidates], abs=1e-5)


def test_an_index_is_built_where_torch_cannot_be_imported(tiny_model, tiny_kb, tmp_path: Path):
    block = LINK.partition("import json")[0]
    code = block + "from mimic_engine.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    out = tmp_path / "index"
    done = run(
        code,
        "index",
        "build",
        "--model",
        tiny_model,
        "--kb",
        tiny_kb,
        "--out",
        out,
        "--threads",
        1,
        "--quiet",
    )
    assert done.returncode == 0, done.stderr
    assert (out / "manifest.json").is_file()


def test_the_block_is_a_real_one():
    done = run(LINK.partition("import json")[0] + "import torch")
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr
