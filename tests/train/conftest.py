"""The tiny training data."""

from tests.tiny_training import data, encoders, one_thread, options  # noqa: F401 - fixtures
