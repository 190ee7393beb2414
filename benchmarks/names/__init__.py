"""Names: lookups beside other machinery, and what names add to right answers."""
