"""The models and all that is agreed between requests: queue, limits, swaps, drift, feedback."""
