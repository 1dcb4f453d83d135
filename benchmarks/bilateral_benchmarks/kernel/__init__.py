"""Times of the fused kernel against its baselines, on a GPU."""
