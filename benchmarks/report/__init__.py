"""Result files in tables: the report, the digest, the page of the experiments."""
