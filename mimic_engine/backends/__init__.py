"""What runs where: the choice of encoders and scan, made once when a linker is opened."""
