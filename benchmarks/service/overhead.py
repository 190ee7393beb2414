"""What HTTP adds to ``Linker.link`` for a client: ``python -m benchmarks.service.overhead``.

The same mention goes to the engine in this process and to a service in its own, in turns, so that both see
the same machine. Every mention is asked once: nothing is answered from a cache. Decoding and resizing of the
picture is on both sides; it is measured and taken out of the ratio.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import RESULTS
from benchmarks.service.open_loop import HEADERS, Question
from benchmarks.service.process import ServiceProcess
from benchmarks.service.workload import TOP_K, Scene, add_arguments, body_of
from mimic_engine.engine.linker import Linker
from mimic_engine.errors import EngineError
from mimic_engine.provenance import write_result
from mimic_engine.types import LinkResult, Mention

PICTURE_BYTES = 80_000
WARM = 5  # rounds that do not count
ANSWER_S = 60


def jpeg(seed: int, size_bytes: int = PICTURE_BYTES) -> bytes:
    """A picture of 640 x 480 whose file is about so large: colours that change softly, and some noise."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    noise = rng.normal(0, 12, (480, 640, 1))
    image = Image.fromarray(np.clip(np.asarray(soft) + noise, 0, 255).astype(np.uint8))

    def encoded(quality: int) -> bytes:
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        return out.getvalue()

    return min(map(encoded, range(40, 96, 5)), key=lambda data: abs(len(data) - size_bytes))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds and result of a call."""
    began = time.perf_counter()
    result = call()
    return (time.perf_counter() - began) * 1e3, result


class Sides:
    """The engine here and the service there."""

    def __init__(self, linker: Linker, address: str) -> None:
        self.linker, self.top_k = linker, min(TOP_K, len(linker.index))
        self._connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=ANSWER_S)

    def link(self, mention: Mention) -> LinkResult:
        """Ask the engine."""
        return self.linker.link([mention], self.top_k)[0]

    def ask(self, body: bytes) -> list[dict[str, Any]]:
        """Ask the service over one living connection."""
        self._connection.request("POST", "/v1/link", body, HEADERS)
        response = self._connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise EngineError(f"/v1/link: {response.status} {content[:300]!r}")
        candidates: list[dict[str, Any]] = json.loads(content)["candidates"]
        return candidates

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def compare(self, mentions: Sequence[Mention]) -> dict[str, Any]:
        """Median milliseconds of both sides over these mentions, decoding taken out of the ratio.

        Raises
        ------
        EngineError
            If the answers differ.
        """
        rounds = [self._round(i, mention) for i, mention in enumerate(mentions)][WARM:]
        link_ms, http_ms, decode_ms = (statistics.median(column) for column in zip(*rounds, strict=True))
        return {
            "rounds": len(rounds),
            "link_ms": link_ms,
            "http_ms": http_ms,
            "decode_ms": decode_ms,
            "difference_ms": http_ms - link_ms,
            "ratio": (http_ms - decode_ms) / (link_ms - decode_ms),
        }

    def _round(self, number: int, mention: Mention) -> tuple[float, float, float]:
        """Both sides once, each first in every second round; then the decoding alone."""
        body = body_of(mention, self.top_k)
        calls = [lambda: self.link(mention), lambda: self.ask(body)]
        order = (0, 1) if number % 2 else (1, 0)
        times = {side: timed(calls[side]) for side in order}
        (link_ms, result), (http_ms, candidates) = times[0], times[1]
        Question(body, self.top_k, tuple((c.id, c.score) for c in result.candidates)).check(candidates)
        if mention.image is None:
            return link_ms, http_ms, 0.0
        with_picture, _ = timed(lambda: self.linker.prepare(mention))
        without, _ = timed(lambda: self.linker.prepare(replace(mention, image=None)))
        return link_ms, http_ms, with_picture - without


def measure(linker: Linker, address: str, mentions: Sequence[Mention]) -> dict[str, Any]:
    """Both inputs: the mentions as text alone, and each with a picture of its own."""
    texts = [replace(m, image=None) for m in mentions]
    pictured = [replace(m, image=jpeg(seed)) for seed, m in enumerate(mentions)]
    with closing(Sides(linker, address)) as sides:
        return {
            "text": sides.compare(texts),
            "jpeg": {
                "picture_bytes": statistics.median(
                    len(m.image) for m in pictured if isinstance(m.image, bytes)
                ),
                **sides.compare(pictured),
            },
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service.overhead", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "overhead.json")
    add_arguments(parser)
    parser.set_defaults(questions=200, input="text")
    args = parser.parse_args(argv)
    scene = Scene.open(args)
    with (
        ServiceProcess(scene.command(args)) as service,
        closing(Linker.open(scene.model, scene.index, threads=args.threads)) as linker,
    ):
        result = measure(linker, service.address, scene.mentions)
    write_result(args.out, result)
    for name, row in result.items():
        print(name, {key: round(value, 3) for key, value in row.items()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
