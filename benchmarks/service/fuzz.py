"""Fuzzing the service: its OpenAPI document by schemathesis, pictures and forms by hypothesis.

    python -m benchmarks.service.fuzz --minutes 15 --out benchmarks/results/fuzz.json

Every answer must be one that the document allows, none may be 500, and when it is over nothing may be left:
no place in the queue, no thread, no open file. The batcher's state machine runs too, as the test that it is.
"""

from __future__ import annotations

import argparse
import base64
import functools
import gc
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import schemathesis
import torch
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.scan.published_inputs import random_features, random_weights
from benchmarks.scan.published_model import Towers, build_model, build_random_index, export
from benchmarks.service.engine_side import fold_entities, load_matcher
from benchmarks.service.process import wait_ready
from mimic_engine import Linker
from mimic_engine.model.fold import fold_constants
from mimic_engine.provenance import write_result
from mimic_engine.server.app import create_app
from mimic_engine.server.settings import Settings

KEY = "a-key-for-fuzzing-only"
UNTOUCHED = "/admin/drain"  # after which there is nothing to fuzz
ONE_BY_ONE = ("/v1/link:batch", "/v1/link:stream")  # whose mentions fail alone, in an answer 200
ROUND_EXAMPLES = 20
ALLOWED = frozenset({200, 413, 415, 422, 504})  # of a request that links
MACHINE = "tests/batching/test_machine.py"


@dataclass
class Tally:
    """What was sent and answered."""

    operations: int = 0
    cases: Counter[str] = field(default_factory=Counter)  # by kind
    statuses: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds that a leak would add to."""

    waiting: int
    threads: int
    files: int

    @classmethod
    def now(cls, app: Starlette) -> Held:
        """Count."""
        gc.collect()
        files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the listing itself is one of them
        # Pools, whose threads are numbered, grow as they please, within their bounds.
        threads = sum(not re.search(r"_\d+$", thread.name) for thread in threading.enumerate())
        return cls(app.state.service.batcher.queue.waiting, threads, files)


def fuzz_openapi(app: Starlette, examples: int, tally: Tally, *, seed: int | None = None) -> None:
    """Send cases drawn from the document to every operation, valid and not; check the answers by it."""
    _register_ndjson()
    schema = schemathesis.openapi.from_asgi("/openapi.json", _without_life(app), headers={"x-api-key": KEY})
    tally.operations = 0
    operations: Any = schema.exclude(path=UNTOUCHED).get_all_operations()
    for found in operations:
        operation = found.ok()
        tally.operations += 1
        for mode in schemathesis.GenerationMode:
            if mode is schemathesis.GenerationMode.NEGATIVE and not operation.body:
                continue  # there is nothing to get wrong
            # Limits are no schema, and a deadline that passed is no fault.
            skipped: list[Any] = [schemathesis.checks.positive_data_acceptance]
            skipped.append(schemathesis.checks.not_a_server_error)
            if operation.path in ONE_BY_ONE:
                skipped.append(schemathesis.checks.negative_data_rejection)
            check = _case_check(tally, skipped)
            _run(check, operation.as_strategy(generation_mode=mode), examples, seed)


def _without_life(app: Starlette) -> ASGIApp:
    """The application as one that is not to be started or ended: it lives on when a client goes."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for _ in ("startup", "shutdown"):
            await send({"type": f"{(await receive())['type']}.complete"})

    return wrapped


@functools.cache
def _register_ndjson() -> None:
    """Teach schemathesis to write a stream of one line."""

    @schemathesis.serializer("application/x-ndjson")
    def write(_: Any, value: Any) -> bytes:
        return json.dumps(value).encode() + b"\n"


def _case_check(tally: Tally, skipped: list[Any]) -> Callable[[Any], None]:
    def check(case: Any) -> None:
        response = case.call(headers={"x-api-key": KEY})
        tally.cases["openapi"] += 1
        tally.statuses[response.status_code] += 1
        assert response.status_code < 500 or response.status_code == 504, response.text
        case.validate_response(response, excluded_checks=skipped)

    return check


def fuzz_pictures(client: TestClient, examples: int, tally: Tally, *, seed: int | None = None) -> None:
    """Send pictures of every kind, whole, cut and changed, in JSON and in forms."""
    fields = {"mention": "a", "sentence": "a b"}

    def check(picture: tuple[bytes, bool]) -> None:
        data, as_form = picture
        headers = {"x-api-key": KEY}
        if as_form:
            response = client.post("/v1/link", data=fields, files={"image": ("a", data)}, headers=headers)
        else:
            body = {**fields, "image": base64.b64encode(data).decode()}
            response = client.post("/v1/link", json=body, headers=headers)
        tally.cases["pictures"] += 1
        tally.statuses[response.status_code] += 1
        assert response.status_code in ALLOWED, (response.status_code, response.text)

    _run(check, st.tuples(damaged_pictures(), st.booleans()), examples, seed)


def warm_up(app: Starlette, client: TestClient) -> None:
    """Send a little of everything: every thread and file that stays is there after it."""
    fuzz_openapi(app, 1, Tally())
    fuzz_pictures(client, 5, Tally())


def damaged_pictures() -> st.SearchStrategy[bytes]:
    """Pictures in formats allowed and not, of which bytes were changed, cut off, or put before and after."""
    changes = st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 255)), max_size=5)
    cut = st.none() | st.integers(0, 5_000)
    around = st.sampled_from([b"", b"", b"", b"<svg>", b"%PDF-1.7\n", b"PK\x03\x04", b"\x00" * 9])

    @st.composite
    def damaged(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(st.sampled_from(pictures())))
        for place, value in draw(changes):
            data[place % len(data)] = value
        end = draw(cut)
        return draw(around) + bytes(data[: end and end % len(data)]) + draw(around)

    return damaged()


def pictures() -> list[bytes]:
    """Small pictures of many modes and formats, an animation and a decompression bomb among them."""
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (23, 37), dtype=np.uint8))
    saved = []
    for mode, kind in (
        *(("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG")),
        *(("RGB", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("I;16", "PNG"), ("1", "PNG")),
        *(("RGB", "WEBP"), ("RGBA", "WEBP"), ("RGB", "GIF"), ("RGB", "BMP"), ("RGB", "TIFF")),
    ):
        saved.append(_saved(grey.convert(mode), kind))
    saved.append(_saved(grey, "WEBP", save_all=True, append_images=[grey.rotate(90, expand=False)]))
    saved.append(_saved(Image.new("1", (20_000, 20_000)), "PNG"))
    return saved


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _run(check: Callable[[Any], None], strategy: Any, examples: int, seed: int | None) -> None:
    """Run a check on examples of a strategy: the same ones every time, or those of a seed."""
    options = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=seed is None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    given_it: Any = given(strategy)
    test: Any = options(given_it(check))
    if seed is not None:
        seeded: Any = hypothesis.seed(seed)
        test = seeded(test)
    test()


def run_machine(seed: int) -> None:
    """Run the batcher's state machine with another seed; it fails as a test does."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", MACHINE]
    subprocess.run([*command, f"--hypothesis-seed={seed}"], check=True, stdout=subprocess.DEVNULL)


def open_app(folder: Path) -> Starlette:
    """The service around a small model of the published architecture and 300 random entities."""
    torch.manual_seed(0)
    weights = random_weights(seed=0)
    matcher = load_matcher(weights)
    model = export(build_model(folder / "clip", weights, Towers(layers=1, image_width=64)), folder)
    folded = fold_entities(matcher, random_features(300, seed=1), "float16")
    from mimic_engine.encoding.manifest import ModelManifest

    model_hash = ModelManifest.read(model).model_hash
    build_random_index(folded, fold_constants(matcher), model_hash, folder / "index")
    (folder / "key").write_text(KEY)
    settings = Settings(admin_key_file=str(folder / "key"), api_keys_file=str(folder / "key"))
    return create_app(Linker.open(model, folder / "index", cache_bytes=1_000_000), settings)


def main() -> None:
    """Fuzz for the given time and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=None, help="of the first round; random by default")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    first = random.SystemRandom().randrange(1 << 30) if args.seed is None else args.seed
    rounds, tally = 0, Tally()
    with tempfile.TemporaryDirectory() as folder:
        app = open_app(Path(folder))
        with TestClient(app) as client:
            wait_ready(app.state.service, 60)
            warm_up(app, client)
            before, began = Held.now(app), time.monotonic()
            while time.monotonic() - began < 60 * args.minutes:
                fuzz_openapi(app, ROUND_EXAMPLES, tally, seed=first + rounds)
                fuzz_pictures(client, 4 * ROUND_EXAMPLES, tally, seed=first + rounds)
                run_machine(first + rounds)
                rounds += 1
            after = Held.now(app)
    faults = tally.statuses[500]
    assert not faults, f"{faults} answers were 500"
    assert after == before, f"held before {before}, after {after}"
    write_result(
        args.out,
        {
            "seconds": time.monotonic() - began,
            "seed": first,
            "rounds": rounds,
            "operations": tally.operations,
            "cases": dict(tally.cases),
            "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
            "internal_errors": faults,
            "held_before": asdict(before),
            "held_after": asdict(after),
        },
    )


if __name__ == "__main__":
    main()
