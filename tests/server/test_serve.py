import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mimic_engine.errors import InvalidInputError
from mimic_engine.serve import _with_demo_key, main
from mimic_engine.server.lifecycle import DrainingServer, bind
from mimic_engine.server.settings import Settings

NAMED = ["--model", "no-such-model", "--index", "no-such-index"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "missing --model and --index; or try --demo"),
        (["--model", "m"], 2, "missing --index"),
        (["--demo", "--index", "i"], 2, "leave out index"),
        ([*NAMED, "--port", "99999"], 2, "--port: Input should be less than or equal to 65535, got '99999'"),
        ([*NAMED, "--max-queue-size", "3"], 2, "max_queue_size=3 is below max_batch_size=32"),
        ([*NAMED, "--log-level", "loud"], 2, "--log-level"),
        ([*NAMED, "--host", "256.0.0.1", "--port", "0"], 1, "host: cannot use '256.0.0.1'"),
        ([*NAMED, "--port", "0"], 1, "no-such-index"),
    ],
)
def test_wrong_options_are_one_clear_line(capsys, arguments, status, message):
    assert main(arguments) == status
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--modle", "m"])
    assert stopped.value.code == 2
    assert "--modle" in capsys.readouterr().err


def test_port_in_use_says_so_before_anything_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InvalidInputError, match=f"port: {port} on 127.0.0.1 is in use"):
            bind("127.0.0.1", port)
        assert main([*NAMED, "--port", str(port)]) == 1
        assert "is in use; choose another with --port" in capsys.readouterr().err


def test_answers_are_not_held_back_by_nagle():
    with bind("127.0.0.1", 0) as taken:
        assert taken.proto == socket.IPPROTO_TCP  # what asyncio asks before it sets TCP_NODELAY


def test_help_needs_no_model_and_no_heavy_import():
    code = (
        "import sys; from mimic_engine.serve import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'onnxruntime', 'starlette', 'uvicorn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy: []\n")


def test_failed_warm_up_stops_the_server(linker):
    from mimic_engine.server.app import create_app

    linker.fail_warm_up = RuntimeError("no such graph")
    settings = Settings(drain_timeout_s=1)
    with bind("127.0.0.1", 0) as taken:
        server = DrainingServer(create_app(linker, settings), settings)
        server.run(sockets=[taken])
    assert str(server.startup_failure) == "no such graph"


def test_the_demo_on_this_machine_can_be_changed_by_whoever_can_read_the_users_files(tmp_path):
    settings = Settings(demo=True, cache=str(tmp_path))
    key = Path(_with_demo_key(settings).admin_key_file)
    assert key.parent == tmp_path
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    first = key.read_text()
    assert len(first.strip()) >= 32
    assert Path(_with_demo_key(settings).admin_key_file).read_text() == first  # the next start has the same


@pytest.mark.parametrize(
    "options",
    [{"demo": False}, {"host": "0.0.0.0"}, {"admin_key_file": "mine"}],
)
def test_nothing_else_gets_a_key_of_its_own(tmp_path, options):
    settings = Settings(**({"demo": True, "cache": str(tmp_path)} | options))
    assert _with_demo_key(settings) == settings
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_chain_that_was_asked_for_and_cannot_be_is_one_clear_line(capsys, tiny_model, tiny_index):
    named = ["--model", str(tiny_model), "--index", str(tiny_index), "--port", "0"]
    assert main([*named, "--chain", "on", "--mention-cache-bytes", "0", "--log-level", "error"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: scorer: 'cuda'")
    assert main([*named, "--chain", "on"]) == 2
    assert "chain=on needs mention_cache_bytes=0" in capsys.readouterr().err
