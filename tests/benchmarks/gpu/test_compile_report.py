"""Every shipped GPU kernel compiles ahead of time and spills nothing; the recorded report is of these kernels."""

import importlib.util
import json
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from benchmarks.gpu.compile_report import (
    ARCHITECTURES,
    SHARED_LIMIT,
    Variant,
    attention_variant,
    compile_variant,
    main,
    shipped,
)

RESULT = Path(__file__).parents[3] / "benchmarks" / "results" / "kernels_aot.json"
VARIANTS = list(shipped())


def recorded():
    return json.loads(RESULT.read_text("utf-8"))


def test_the_recorded_report_covers_what_is_shipped():
    rows = {(r["kernel"], r["case"], r["sm"]) for r in recorded()["rows"]}
    assert rows == {(v.kernel, v.case, sm) for v in VARIANTS for sm in ARCHITECTURES}


def test_the_recorded_report_is_of_the_shipped_tiles():
    rows = {(r["kernel"], r["case"]): r for r in recorded()["rows"]}
    for variant in VARIANTS:
        row = rows[variant.kernel, variant.case]
        assert row["warps"] == variant.constants["num_warps"], variant.name
        assert row["stages"] == variant.constants["num_stages"], variant.name
        assert row["tile"].items() <= variant.constants.items(), variant.name


def test_no_recorded_configuration_spills():
    for row in recorded()["rows"]:
        where = f"{row['kernel']} {row['case']} sm_{row['sm']}"
        assert row["spills"] == row["stack_bytes"] == 0, where
        assert row["shared_bytes"] <= SHARED_LIMIT[row["sm"]], where


SAMPLE = (
    "tglu_attention float16 b=1",
    "gated_units float16 b=64",
    "cone_bound float16",
    "coded_tglu float16 uint16",
)


@pytest.mark.parametrize("name", SAMPLE)
def test_compiled_here_it_spills_nothing_and_matches_the_record(name):
    [variant] = [v for v in VARIANTS if v.name == name]
    usage = compile_variant(variant, 90)
    assert usage.spills == usage.stack_bytes == 0
    [row] = [
        r for r in recorded()["rows"] if (r["kernel"], r["case"], r["sm"]) == (usage.kernel, usage.case, 90)
    ]
    assert usage.instructions.get("HGMMA", 0) > 0 or usage.instructions.get("HMMA", 0) > 0
    assert usage.registers == pytest.approx(row["registers"], abs=24)  # assemblers differ a little


def test_a_spill_is_seen():
    from mimic_engine.kernels.tiles import Tile

    variant = attention_variant(VARIANTS[0].runtime["query"].dtype, 64, tile=Tile(128, 8, 4, 1))
    assert isinstance(variant, Variant)
    assert compile_variant(variant, 80).spills > 0


def test_the_command_writes_a_result(tmp_path, capsys):
    assert main(["--only", "unpack_keys k=16", "--sm", "80", "--out", str(tmp_path / "r.json")]) == 0
    [row] = json.loads((tmp_path / "r.json").read_text("utf-8"))["rows"]
    assert (row["kernel"], row["sm"], row["spills"]) == ("unpack_keys", 80, 0)
    assert "0 spills" in capsys.readouterr().out
