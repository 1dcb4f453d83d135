"""Triton's Python backend: the files that run inside it, and a stand-in for it to try them in."""
