"""``python -m mimic_engine.demo``: fetch and build the demo, and say what it holds."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from mimic_engine.demo import DemoData, build_demo, default_cache, fetch_demo
from mimic_engine.errors import MimicError


def describe(demo: DemoData) -> str:
    """The demo in numbers, one line a part."""
    types = Counter(entity.type for entity in demo.entities)
    lines = [f"entities: {len(demo.entities)} " + str(dict(sorted(types.items())))]
    for name, mentions in {**demo.mentions, "challenge": demo.challenge}.items():
        with_image = sum(m.mention.image is not None for m in mentions)
        kinds = Counter(m.id.split("/")[0] for m in mentions)
        lines.append(
            f"{name}: {len(mentions)} mentions, {with_image} with an image {dict(sorted(kinds.items()))}"
        )
    return "\n".join(lines)


def main() -> int:
    """Fetch, build, print; exit code 1 and a message on stderr where that fails."""
    parser = argparse.ArgumentParser(prog="python -m mimic_engine.demo", description=__doc__)
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="folder of the demo (%(default)s)"
    )
    parser.add_argument("--archives", type=Path, help="folder with packages already downloaded")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    options = parser.parse_args()
    try:
        files = fetch_demo(options.cache, not options.quiet, archives=options.archives)
        demo = build_demo(files, options.cache, not options.quiet)
    except MimicError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(describe(demo) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
