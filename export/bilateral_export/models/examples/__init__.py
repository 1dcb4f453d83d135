"""Worked examples of models of your own, and the starting point of `bilateral new`."""
