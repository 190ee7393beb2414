"""Training and evaluation of MIMIC in plain PyTorch."""
