"""The scan: scores of mentions with all entities of an index, and the best of them, proved (section 3.3)."""
