"""Synthetic tasks of the Long Range Arena, generated instead of downloaded."""
