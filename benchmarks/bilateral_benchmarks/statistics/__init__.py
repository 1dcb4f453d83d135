"""Percentiles with their intervals, and comparisons of interleaved measurements."""
