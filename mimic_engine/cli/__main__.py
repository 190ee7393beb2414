"""The command line, as ``python -m mimic_engine.cli``."""

from mimic_engine.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
