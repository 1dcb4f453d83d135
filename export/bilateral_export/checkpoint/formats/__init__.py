"""Readers of checkpoint files, one per format; none of them runs code from a file."""
