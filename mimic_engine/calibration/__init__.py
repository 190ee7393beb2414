"""What is measured on an index and promised by its manifest: NIL threshold, storage, recall of codes."""
