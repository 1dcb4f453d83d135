"""Experiments: each measures one thing and returns what it saw, without writing it."""
