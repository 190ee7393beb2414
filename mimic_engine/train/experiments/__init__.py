"""Declared grids of trainings: run, evaluated once on test, summarised over seeds, and drawn.

``python -m mimic_engine.train.experiments NAME``; the declarations are the
files under ``benchmarks/experiments/``.
"""
