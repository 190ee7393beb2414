"""Changes of an index: what they cost, and what a kill leaves of them."""
