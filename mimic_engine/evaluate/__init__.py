"""Evaluation of a model on labelled mentions: ``python -m mimic_engine.evaluate``."""
