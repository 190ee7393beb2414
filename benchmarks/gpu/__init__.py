"""The GPU: kernels against their twins, scans, encoders, whole requests."""
