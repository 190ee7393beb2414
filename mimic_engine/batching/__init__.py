"""The dynamic batcher: a bounded queue in front of one device thread. No HTTP and no arrays."""
