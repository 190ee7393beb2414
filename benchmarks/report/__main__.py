"""Tables of all result files, as ``python -m benchmarks.report``."""

from benchmarks.report.report import main

if __name__ == "__main__":
    raise SystemExit(main())
