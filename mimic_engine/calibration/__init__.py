"""Measurements on a model and an index, kept beside them: nil threshold, storage, recall of codes."""
