"""A built plan: its manifest, its header, its kernels, and where it can be loaded."""
