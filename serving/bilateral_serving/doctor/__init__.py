"""Finds what would keep a server from starting or from answering right, before it starts."""
