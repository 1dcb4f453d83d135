"""Trained weights in, checked: README.md lists the formats and what is refused."""
