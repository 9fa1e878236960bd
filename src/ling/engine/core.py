"""The engine: requests in, a step at a time, deltas out."""
