"""Training of MIMIC in plain PyTorch."""
