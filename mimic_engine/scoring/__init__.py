"""Scorers: folded mentions against folded entities."""
