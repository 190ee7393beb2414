"""A request on the device from token ids and pixels to the k best, without a host round trip."""
