"""Readers that turn files into mentions and entities, and the embedded demo data."""
