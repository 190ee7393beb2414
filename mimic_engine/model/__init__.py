"""The PyTorch core: encoders, interaction units, matcher, loss, checkpoints, folding."""
