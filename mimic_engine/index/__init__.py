"""The index on disk: format, resumable build, memory-mapped store."""
