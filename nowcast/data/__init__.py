"""Windows of frames as batches for networks."""
