"""The choice of encoders and scan, and of where each runs, made once when a linker is opened."""
