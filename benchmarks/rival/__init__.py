"""The rival that anyone builds in an afternoon: vectors in one flat index, and equal names."""
