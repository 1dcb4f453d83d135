"""Diagnosis of what would keep a server from starting or from answering correctly."""
