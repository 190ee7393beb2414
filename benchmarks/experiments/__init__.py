"""Declared grids of trainings: run, evaluated once on test, summarised over seeds, and drawn.

``python -m benchmarks.experiments NAME``; the declarations are the TOML files
of this folder.
"""
