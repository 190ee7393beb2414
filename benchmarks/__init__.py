"""Benchmarks of mimic_engine; every one checks the answer that it times."""
