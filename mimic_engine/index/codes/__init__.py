"""Codes of token queries, for the mode ``coded``: clusters, files, and the scan that reads them."""
