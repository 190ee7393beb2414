"""Checkpoints round trip, refuse what does not fit, and published files import exactly."""

import argparse
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, CLIPModel

from benchmarks.scan import published_loop as baseline
from benchmarks.scan.published_inputs import Features as PublishedFeatures
from mimic_engine.errors import ModelError
from mimic_engine.model.checkpoint import load_checkpoint, save_checkpoint, tokenizer_json_text
from mimic_engine.model.lightning import import_lightning, read_lightning_state
from mimic_engine.model.units import Mimic


def inputs(rows: int, length: int = 9, size: int = 32):
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 40, (rows, length), generator=g)
    ids[:, -1] = 49
    return ids, torch.ones_like(ids), torch.zeros_like(ids), torch.randn(rows, 3, size, size, generator=g)


def scores(model: Mimic) -> torch.Tensor:
    with torch.no_grad():
        features = model.eval().encode(*inputs(3))
        return model(features, features).total


def save(model: Mimic, folder: Path, **options) -> None:
    text = tokenizer_json_text(model.config.encoder.text_source)
    save_checkpoint(model, folder, tokenizer_json=text, **options)


@pytest.mark.parametrize("family", ["bert_vit_config", "clip_config"])
@pytest.mark.parametrize("include_backbone", [True, False])
def test_round_trip_gives_the_same_scores(request, tmp_path, family, include_backbone):
    model = Mimic.build(request.getfixturevalue(family))
    save(model, tmp_path / "ck", include_backbone=include_backbone, extra={"note": 1})
    loaded = load_checkpoint(tmp_path / "ck")
    assert torch.equal(scores(loaded.model), scores(model))
    assert loaded.extra == {"note": 1}
    save(model, tmp_path / "ck")
    assert torch.equal(scores(load_checkpoint(tmp_path / "ck").model), scores(model))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("ck")] == ["ck"]


def test_a_folder_that_is_no_checkpoint_is_not_replaced(tmp_path, bert_vit_config):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match="work: exists and is no checkpoint"):
        save(Mimic.build(bert_vit_config), tmp_path / "work")
    assert (tmp_path / "work" / "notes.txt").read_text() == "mine"


def test_a_full_checkpoint_needs_no_source(tmp_path, bert_vit_config):
    model = Mimic.build(bert_vit_config)
    save(model, tmp_path / "ck")
    for name in ("bert", "vit"):
        (tmp_path / name).rename(tmp_path / f"{name}.gone")
    assert torch.equal(scores(load_checkpoint(tmp_path / "ck").model), scores(model))


def test_another_backbone_is_refused(tmp_path, bert_vit_config):
    save(Mimic.build(bert_vit_config), tmp_path / "ck", include_backbone=False)
    hidden = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=50, **hidden), add_pooling_layer=False).save_pretrained(
        tmp_path / "other"
    )
    with pytest.raises(ModelError, match="give text_source and image_source of the same weights"):
        load_checkpoint(tmp_path / "ck", text_source=str(tmp_path / "other"))


@pytest.mark.parametrize("damage", ["missing", "not-json", "version", "truncated", "flipped", "renamed-key"])
def test_a_damaged_checkpoint_is_refused(tmp_path, bert_vit_config, damage):
    folder = tmp_path / "ck"
    save(Mimic.build(bert_vit_config), folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    data = weights.read_bytes()
    if damage == "missing":
        config.unlink()
    elif damage == "not-json":
        config.write_text("{")
    elif damage == "version":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"version": 99}))
    elif damage == "truncated":
        weights.write_bytes(data[:-10])
    elif damage == "flipped":
        weights.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    else:
        weights.write_bytes(data.replace(b"matcher.tglu.fc_query.bias", b"matcher.tglu.fc_kuery.bias"))
    with pytest.raises(ModelError, match="ck"):
        load_checkpoint(folder)


@pytest.fixture
def lightning_file(tmp_path, clip_config):
    """A Lightning-like file with the published key names, hyper-parameters and an old index buffer."""
    model = Mimic.build(clip_config)
    torch.manual_seed(7)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    state = dict(model.state_dict())
    state["encoder.clip.text_model.embeddings.position_ids"] = torch.arange(20)[None]
    content = {
        "state_dict": state,
        "epoch": 3,
        "hyper_parameters": argparse.Namespace(lr=1e-5, path=Path("x")),
        "optimizer_states": [],
    }
    torch.save(content, tmp_path / "published.ckpt")
    return tmp_path / "published.ckpt", model


def test_lightning_import_is_exact(lightning_file, clip_config):
    path, original = lightning_file
    model, report = import_lightning(path, clip_config)
    assert report.complete
    assert report.ignored == ("encoder.clip.text_model.embeddings.position_ids",)
    assert torch.equal(scores(model), scores(original))
    exact, plain = (published_scores_of(path, clip_config, dtype) for dtype in (torch.float64, torch.float32))
    error = (scores(model).double() - exact).abs().max()
    assert error <= 2 * (plain.double() - exact).abs().max() + 1e-6


def published_scores_of(path, clip_config, dtype) -> torch.Tensor:
    """Scores by the Hugging Face model and the independent published loop, from the file's state dict."""
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in read_lightning_state(path).items()}
    clip = CLIPModel.from_pretrained(clip_config.encoder.text_source)
    clip.load_state_dict({k[13:]: v for k, v in state.items() if k.startswith("encoder.clip.")}, strict=False)
    ids, mask, _, pixels = inputs(3)
    with torch.no_grad():
        out = clip.to(dtype).eval()(input_ids=ids, attention_mask=mask, pixel_values=pixels.to(dtype))
        fc = torch.nn.functional.linear
        projected = [
            fc(x, state[f"encoder.{n}.weight"], state[f"encoder.{n}.bias"])
            for n, x in (
                ("image_cls_fc", out.image_embeds),
                ("image_tokens_fc", out.vision_model_output.last_hidden_state),
            )
        ]
    features = PublishedFeatures(out.text_embeds, out.text_model_output.last_hidden_state, *projected)
    return baseline.published_scores(state, features, features)["total"]


def test_lightning_import_lists_missing_and_unexpected_keys(lightning_file, clip_config):
    path, _ = lightning_file
    content = torch.load(path, weights_only=False)
    weight = content["state_dict"].pop("matcher.cmfu.text_fc.weight")
    content["state_dict"]["matcher.cmfu.text_fcc.weight"] = weight
    torch.save(content, path)
    _, report = import_lightning(path, clip_config)
    assert report.missing == ("matcher.cmfu.text_fc.weight",)
    assert report.unexpected == ("matcher.cmfu.text_fcc.weight",)
    assert not report.complete


def test_lightning_import_refuses_other_shapes_and_files(lightning_file, clip_config, tmp_path):
    path, _ = lightning_file
    wide = replace(clip_config, matcher=replace(clip_config.matcher, hidden=9))
    with pytest.raises(ModelError, match=r"\(8, 10\) in the file, \(9, 10\) in the model"):
        import_lightning(path, wide)
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ModelError, match=r"text\.ckpt"):
        import_lightning(tmp_path / "text.ckpt", clip_config)
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ModelError, match="state_dict"):
        import_lightning(tmp_path / "other.ckpt", clip_config)


class Hyperparameters(dict):
    """A subclass of dict, as training frameworks keep their options in."""


def test_lightning_import_reads_past_subclasses_of_dict(lightning_file, clip_config):
    path, original = lightning_file
    content = torch.load(path, weights_only=False)
    content["hyper_parameters"] = Hyperparameters(lr=1e-5, model=Hyperparameters(d=8))
    content["resolver_cache"] = defaultdict(dict, {"a": {"b": 1}})
    torch.save(content, path)
    model, report = import_lightning(path, clip_config)
    assert report.complete
    assert torch.equal(scores(model), scores(original))


class Sentinel:
    """Leaves a file behind if a checkpoint manages to run code."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_lightning_import_runs_no_code_of_the_file(lightning_file, clip_config, tmp_path):
    path, _ = lightning_file
    content = torch.load(path, weights_only=False)
    content["hyper_parameters"] = Sentinel(str(tmp_path / "proof"))
    torch.save(content, path)
    _, report = import_lightning(path, clip_config)
    assert report.complete
    assert not (tmp_path / "proof").exists()


def test_an_encoder_source_that_lacks_weights_is_refused(tmp_path, bert_vit_config):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "bert" / "model.safetensors"
    state = load_file(path)
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights \['encoder\.layer\.1\.output\.dense\.weight'\]"):
        Mimic.build(bert_vit_config)


@pytest.mark.parametrize("content", [b"no weights", b""])
def test_a_file_without_efficientnet_weights_is_refused(tmp_path, bert_vit_config, content):
    (tmp_path / "net.pth").write_bytes(content)
    source = {"image": "efficientnet-lite0", "image_source": str(tmp_path / "net.pth")}
    with pytest.raises(ModelError, match=r"net\.pth.*no EfficientNet-Lite0 weights"):
        Mimic.build(replace(bert_vit_config, encoder=replace(bert_vit_config.encoder, **source)))


def test_a_cut_encoder_file_is_refused(tmp_path, bert_vit_config):
    path = tmp_path / "vit" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match=r"vit.*cannot be loaded"):
        Mimic.build(bert_vit_config)


def test_a_config_without_a_key_is_refused(tmp_path, bert_vit_config):
    save(Mimic.build(bert_vit_config), tmp_path / "ck")
    config = json.loads((tmp_path / "ck" / "config.json").read_text())
    del config["include_backbone"]
    (tmp_path / "ck" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config\.json: .*missing required field `include_backbone`"):
        load_checkpoint(tmp_path / "ck")
