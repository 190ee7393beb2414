"""Encoder sessions: from mentions and entities to folded arrays."""
