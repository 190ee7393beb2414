"""The command line: ``mimic-engine COMMAND``."""
