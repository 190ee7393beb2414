"""Command line of the evaluation."""

from mimic_engine.evaluate.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
