"""Lines of the log: one JSON object each, with the id of the request that made it."""

import json
import logging

import pytest

from mimic_engine.server import logs
from mimic_engine.server.settings import Settings

JORDAN = {"mention": "Jordan", "sentence": "the river in the east"}


@pytest.fixture
def log(capsys):
    """Configure the root logger, as the service does; ``read = log(settings)`` gives the lines written."""
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def start(settings):
        root.handlers.clear()
        logs.configure(settings)
        return lambda: capsys.readouterr().err.splitlines()

    yield start
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    logging.getLogger("faiss.loader").setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    ("level", "said"), [("debug", ["a", "b", "c"]), ("info", ["b", "c"]), ("error", ["c"])]
)
def test_what_a_library_was_built_without_is_told_on_debug(log, level, said):
    read = log(Settings(log_level=level))
    loader = logging.getLogger("faiss.loader")
    loader.info("a")
    loader.warning("b")
    loader.error("c")
    assert [line.rpartition(" ")[2] for line in read()] == said


def test_json_lines_carry_the_request_id(serve, log, linker):
    settings = {"log_format": "json", "access_log": True}
    client = serve(**settings)
    read = log(Settings(**settings))
    client.post("/v1/link", json=JORDAN, headers={"x-request-id": "abc-1"})
    linker.fail_prepare = KeyError("what went wrong")
    client.post("/v1/link", json=JORDAN, headers={"x-request-id": "abc-2"})
    parsed = [json.loads(line) for line in read()]
    [first] = [line for line in parsed if line.get("request_id") == "abc-1"]
    assert (first["logger"], first["route"], first["status"]) == ("mimic_engine.access", "/v1/link", 200)
    assert first["ms"] > 0
    fault, second = [line for line in parsed if line.get("request_id") == "abc-2"]
    assert "what went wrong" in fault["exception"]
    assert (fault["level"], second["status"]) == ("error", 500)
    assert {"time", "level", "logger", "message"} <= set(fault)


def test_text_lines_carry_it_too(serve, log):
    client = serve(access_log=True)
    read = log(Settings())
    client.get("/health/live", headers={"x-request-id": "abc-3"})
    [line] = [line for line in read() if "mimic_engine.access" in line]
    assert line.endswith(" ms [abc-3]")
    assert "GET /health/live 200" in line


def test_what_json_lacks_is_written_as_text():
    record = logging.makeLogRecord({"msg": "%s", "args": ("x\ny",), "thing": object(), "name": "n"})
    parsed = json.loads(logs.JsonFormatter().format(record))
    assert parsed["message"] == "x\ny"
    assert parsed["thing"].startswith("<object")
