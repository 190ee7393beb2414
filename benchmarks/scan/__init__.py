"""The scan on a CPU: against the published loop, by size, on random features."""
