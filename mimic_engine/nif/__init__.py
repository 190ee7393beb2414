"""NIF 2.0 documents: read, linked, and written with their answers."""
