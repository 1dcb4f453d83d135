"""Checkpoints of other libraries: recognised by names and shapes, renamed, no code executed."""
