import pytest
from pydantic import ValidationError
from pydantic_settings import CliApp

from mimic_engine.server.settings import Settings


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
    ],
)
def test_limits_and_their_relations_are_checked(options, message):
    with pytest.raises(ValidationError, match=message):
        Settings(**options)


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
