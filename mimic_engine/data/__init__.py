"""Readers of mentions and entities from files."""
