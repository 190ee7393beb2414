"""The HTTP service around a Linker."""
