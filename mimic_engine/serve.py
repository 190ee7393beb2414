"""``python -m mimic_engine.serve --model MODEL --index INDEX``, or ``--demo``: run the service."""

from __future__ import annotations

import json
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from mimic_engine.errors import InvalidInputError, MimicError
from mimic_engine.server.logs import configure
from mimic_engine.server.settings import Settings
from mimic_engine.types import Mention

LOOPBACK = ("127.0.0.1", "::1", "localhost")

logger = logging.getLogger("mimic_engine.serve")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service until a signal has drained it; the result is the exit status."""
    try:
        settings = CliApp.run(Settings, cli_args=list(sys.argv[1:] if argv is None else argv))
        _check_sources(settings)
        settings = _with_demo_key(settings)
    except (ValidationError, SettingsError, InvalidInputError) as error:
        return _fail(_explain(error), 2)
    except OSError as error:
        return _fail(f"cache: the demo's admin key cannot be written: {error}", 1)
    configure(settings)
    try:
        return _serve(settings)
    except MimicError as error:
        return _fail(str(error), 1)
    except OSError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted while starting", 130)


def _check_sources(settings: Settings) -> None:
    named = [name for name in ("model", "index") if getattr(settings, name) is not None]
    if settings.demo and named:
        raise InvalidInputError(f"demo: brings its own model and index; leave out {' and '.join(named)}")
    if not settings.demo and len(named) < 2:
        missing = " and ".join(f"--{name}" for name in ("model", "index") if name not in named)
        raise InvalidInputError(f"missing {missing}; or try --demo")


def _with_demo_key(settings: Settings) -> Settings:
    """Let whoever can read the user's files change the demo, where nobody else can reach the service."""
    if not settings.demo or settings.admin_key_file is not None or settings.host not in LOOPBACK:
        return settings
    from mimic_engine.demo.prepare import demo_admin_key

    return settings.model_copy(update={"admin_key_file": str(demo_admin_key(_demo_cache(settings)))})


def _demo_cache(settings: Settings) -> Path | None:
    return None if settings.cache is None else Path(settings.cache).expanduser()


def _serve(settings: Settings) -> int:
    from mimic_engine.engine.gpu_choice import choose_pipeline
    from mimic_engine.engine.linker import Linker
    from mimic_engine.images import ImageLimits
    from mimic_engine.index_changes import IndexChanges
    from mimic_engine.server.app import create_app
    from mimic_engine.server.auth import Keys
    from mimic_engine.server.lifecycle import DrainingServer, bind

    keys = Keys.read(settings)
    with bind(settings.host, settings.port) as taken:
        if not keys.ordinary and settings.host not in LOOPBACK:
            logger.warning("host=%s: open to everybody who can reach it; see api_keys_file", settings.host)
        model, index, examples = _sources(settings)
        linker = Linker.open(
            model,
            index,
            backend=settings.backend,
            precision=settings.precision,
            engines=settings.engines,
            checkpoint=settings.checkpoint,
            device_layer=settings.device_layer,
            threads=settings.threads,
            scorer="cuda" if settings.chain == "on" else settings.scorer,
            placement=settings.placement,
            cache_bytes=settings.mention_cache_bytes,
            image_limits=ImageLimits(max_bytes=settings.max_image_bytes),
            names=settings.names,
        )
        try:
            linker = choose_pipeline(linker, settings.chain)
            logger.info("opened model %s and index %s, %d entities", model, index, len(linker.index))
            writer = None
            if settings.admin_key_file is not None:
                writer = IndexChanges(model, index, threads=settings.threads)
            app = create_app(linker, settings, examples=examples, writer=writer)
            server = DrainingServer(app, settings, on_ready=lambda: _greet(taken, settings))
            server.run(sockets=[taken])
        finally:
            linker.close()
    if server.startup_failure is not None:
        return _fail(f"the warm-up failed: {server.startup_failure}", 1)
    logger.info("stopped")
    return 0


def _sources(settings: Settings) -> tuple[Path, Path, list[Mention]]:
    """Model, index, and mentions to try."""
    from mimic_engine.base.model import find_model

    if settings.model is not None and settings.index is not None:
        return find_model(settings.model), Path(settings.index), []
    from mimic_engine.demo.examples import load_examples
    from mimic_engine.demo.prepare import prepare_demo

    paths = prepare_demo(_demo_cache(settings))
    return paths.model, paths.index, [example.mention for example in load_examples(paths.data)]


def _greet(taken: socket.socket, settings: Settings) -> None:
    host, port = taken.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    example = json.dumps({"mention": "Jordan", "sentence": "Jordan lies east of Israel.", "top_k": 3})
    print(
        f"\nReady: {url} (a page to try it; documentation: {url}/docs; Ctrl-C drains and stops)\n"
        f"  curl -s {url}/v1/link -H 'content-type: application/json' -d '{example}'\n",
        flush=True,
    )
    if settings.demo and settings.admin_key_file is not None:
        print(f"To change entities on the page, give it the key in {settings.admin_key_file}\n", flush=True)


def _explain(error: Exception) -> str:
    """One line for each wrong option, by the name it has as a flag."""
    if not isinstance(error, ValidationError):
        return str(error)
    lines = []
    for detail in error.errors():
        flag = "".join(f"--{part}".replace("_", "-") for part in map(str, detail["loc"]))
        got = f", got {detail['input']!r}" if flag else ""
        lines.append(f"{flag}: {detail['msg']}{got}" if flag else str(detail["msg"]))
    return "\n".join(line.removeprefix("Value error, ") for line in lines)


def _fail(message: str, status: int) -> int:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
