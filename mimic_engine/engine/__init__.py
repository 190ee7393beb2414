"""Linking: folded mentions in, ranked entities out. Read ``linker.py`` first."""
