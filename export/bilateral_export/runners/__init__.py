"""Runtimes behind one `Runner` protocol, one a file, listed in the registry."""
