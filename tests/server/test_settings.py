from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from mimic_engine.server.settings import Settings, page

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_flag_wins_over_variable_wins_over_default(monkeypatch):
    assert Settings().max_batch_size == 32
    monkeypatch.setenv("MIMIC_MAX_BATCH_SIZE", "5")
    monkeypatch.setenv("MIMIC_HOST", "0.0.0.0")
    assert Settings().max_batch_size == 5
    settings = CliApp.run(Settings, cli_args=["--max-batch-size", "7"])
    assert (settings.max_batch_size, settings.host) == (7, "0.0.0.0")


def test_every_field_is_a_flag_with_a_description(capsys):
    with pytest.raises(SystemExit):
        CliApp.run(Settings, cli_args=["--help"])
    text = capsys.readouterr().out
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in text
        assert field.description


def test_binds_to_this_machine_by_default():
    assert Settings().host == "127.0.0.1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_queue_size": 31}, "max_queue_size=31 is below max_batch_size=32"),
        ({"max_queue_size": 63}, "max_queue_size=63 is below max_mentions=64"),
        ({"max_batch_cost": 3}, "max_batch_cost=3 is below image_cost=4"),
        ({"max_body_bytes": 10}, "max_body_bytes=10 is below max_image_bytes=10000000"),
        ({"timeout_ms": 200_000}, r"max_timeout_ms=120000\S* is below timeout_ms=200000"),
        ({"port": -1}, "greater than or equal to 0"),
        ({"queue_timeout_ms": 0}, "greater than 0"),
        ({"host": ""}, "at least 1 character"),
        ({"chain": "on"}, "chain=on needs mention_cache_bytes=0, not 64000000"),
        ({"chain": "on", "backend": "onnx"}, "chain=on needs backend=auto or cuda or tensorrt, not onnx"),
        ({"chain": "on", "scorer": "cpu"}, "chain=on needs scorer=auto or cuda, not cpu"),
    ],
)
def test_limits_and_their_relations_are_checked(options, message):
    with pytest.raises(ValidationError, match=message):
        Settings(**options)


def test_a_chain_is_possible_without_a_cache():
    assert Settings(chain="on", mention_cache_bytes=0, backend="tensorrt", scorer="cuda").chain == "on"


def test_batcher_gets_every_knob():
    settings = Settings(max_batch_size=3, max_batch_cost=9, max_queue_delay_us=7, queue_timeout_ms=11)
    limits = settings.batch_limits()
    for name in (
        "max_batch_size",
        "max_batch_cost",
        "max_queue_delay_us",
        "max_queue_size",
        "queue_timeout_ms",
    ):
        assert getattr(limits, name) == getattr(settings, name)


def test_variable_wins_over_file_wins_over_default(monkeypatch, tmp_path):
    file = tmp_path / "mimic.toml"
    file.write_text('max_batch_size = 5\nport = 99\nhost = "::1"\naccess_log = true\n')
    monkeypatch.setenv("MIMIC_PORT", "7")
    settings = CliApp.run(Settings, cli_args=["--config", str(file), "--host", "0.0.0.0"])
    assert (settings.max_batch_size, settings.port, settings.host) == (5, 7, "0.0.0.0")
    assert settings.access_log
    monkeypatch.setenv("MIMIC_CONFIG", str(file))
    assert Settings().max_batch_size == 5


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("max_batch = 3", SettingsError, "unknown keys max_batch"),
        ('config = "other.toml"', SettingsError, "unknown keys config"),
        ("port = ", SettingsError, "is not TOML"),
        ("port = -1", ValidationError, "greater than or equal to 0"),
        ("max_queue_size = 3", ValidationError, "max_queue_size=3 is below max_batch_size=32"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, error, message):
    file = tmp_path / "mimic.toml"
    file.write_text(text)
    with pytest.raises(error, match=message):
        Settings(config=str(file))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"config: \S+nowhere.toml cannot be read: No such file"):
        Settings(config=str(tmp_path / "nowhere.toml"))


def test_the_page_of_settings_is_current():
    assert PAGE.read_text("utf-8") == page(), "run: python -m mimic_engine.server.settings > docs/settings.md"


def test_the_page_of_settings_has_every_name_and_range():
    text = page()
    for name in Settings.model_fields:
        assert f"| `--{name.replace('_', '-')}` | `MIMIC_{name.upper()}` | " in text
    assert "| whole number, at least 0, at most 65535 | `8080` |" in text
    assert "| `debug`, `info`, `warning`, `error` | `info` |" in text
