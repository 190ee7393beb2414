"""Command line of training: ``python -m mimic_engine.train --data DIR --out RUN``."""

from __future__ import annotations

import sys

from mimic_engine.errors import MimicError
from mimic_engine.train.config import parse_args


def main(argv: list[str] | None = None) -> int:
    """Train; 0 on success, 1 with a message on an error that has one, 130 on Ctrl-C."""
    config = parse_args(argv)
    from mimic_engine.train.run import configure_logging, train

    configure_logging()
    try:
        progress = train(config)
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("stopped; --resume goes on from the last whole epoch", file=sys.stderr)  # noqa: T201
        return 130
    best = config.out / "best"
    print(f"best dev MRR {progress.best_mrr:.4f} after {progress.epoch} epochs: {best}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
