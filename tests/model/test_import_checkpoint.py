"""The import command: a published file in, a checkpoint with the same scores out, or nothing."""

from pathlib import Path

import pytest
import torch

from mimic_engine.config import ModelConfig
from mimic_engine.export.import_checkpoint import PUBLISHED, main
from mimic_engine.model.checkpoint import load_checkpoint
from mimic_engine.model.units import Mimic


@pytest.fixture
def published(tmp_path: Path, clip_config: ModelConfig) -> tuple[Path, Mimic, list[str]]:
    """A Lightning-like file, the model whose weights it holds, and the options that fit the tiny CLIP."""
    model = Mimic.build(clip_config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    path = tmp_path / "published.ckpt"
    torch.save({"state_dict": model.state_dict(), "epoch": 7}, path)
    options = ["--clip", clip_config.encoder.text_source, "--max-length", "9", "--image-size", "32"]
    return path, model, [*options, "--hidden", "8"]


def scores(model: Mimic) -> torch.Tensor:
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 40, (3, 9), generator=g)
    ids[:, -1] = 49
    with torch.no_grad():
        features = model.encode(
            ids, torch.ones_like(ids), torch.zeros_like(ids), torch.randn(3, 3, 32, 32, generator=g)
        )
        return model(features, features).total


def drop(path: Path, key: str, *, instead: str | None = None) -> None:
    """Remove a weight from the file, or give it another name."""
    content = torch.load(path, weights_only=True)
    weight = content["state_dict"].pop(key)
    if instead is not None:
        content["state_dict"][instead] = weight
    torch.save(content, path)


def test_the_imported_checkpoint_has_the_same_scores(published, tmp_path, capsys):
    path, model, options = published
    assert main([str(path), str(tmp_path / "out"), *options]) == 0
    assert "imported from" in capsys.readouterr().out
    imported = load_checkpoint(tmp_path / "out")
    assert torch.equal(scores(imported.model), scores(model))
    assert imported.extra == {"imported_from": "published.ckpt", "missing": [], "unexpected": []}
    assert imported.model.config.text.pairing == "literal"
    assert main([str(path), str(tmp_path / "out"), *options]) == 0  # replaces a checkpoint


def test_an_incomplete_file_is_refused_unless_allowed(published, tmp_path, capsys):
    path, _, options = published
    out = tmp_path / "out"
    drop(path, "matcher.cmfu.text_fc.bias", instead="matcher.cmfu.text_fcc.bias")
    assert main([str(path), str(out), *options]) == 1
    said = capsys.readouterr().err
    assert "missing ['matcher.cmfu.text_fc.bias']" in said
    assert "unexpected ['matcher.cmfu.text_fcc.bias']" in said
    assert not out.exists()
    assert main([str(path), str(out), *options, "--allow-incomplete"]) == 0
    assert "missing: matcher.cmfu.text_fc.bias" in capsys.readouterr().out
    assert load_checkpoint(out).extra["missing"] == ["matcher.cmfu.text_fc.bias"]


def test_what_is_not_a_checkpoint_is_not_replaced(published, tmp_path, capsys):
    path, _, options = published
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", "utf-8")
    assert main([str(path), str(tmp_path / "mine"), *options]) == 1
    assert "no checkpoint" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").is_file()


@pytest.mark.parametrize("case", ["no file", "no clip", "other width"])
def test_wrong_input_is_one_line(published, tmp_path, capsys, case):
    path, _, options = published
    if case == "no file":
        path, expected = tmp_path / "none.ckpt", "none.ckpt"
    elif case == "no clip":
        (tmp_path / "empty").mkdir()
        options, expected = [*options, "--clip", str(tmp_path / "empty")], "no tokenizer.json"
    else:
        options, expected = [*options, "--hidden", "9"], "in the model"
    assert main([str(path), str(tmp_path / "out"), *options]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and expected in said


def test_the_defaults_are_the_published_configuration():
    assert (PUBLISHED.encoder.text, PUBLISHED.encoder.image) == ("clip", "clip")
    assert (PUBLISHED.text.max_length, PUBLISHED.text.pairing, PUBLISHED.image.size) == (40, "literal", 224)
    assert (PUBLISHED.matcher.hidden, PUBLISHED.matcher.mask_padding) == (96, False)
