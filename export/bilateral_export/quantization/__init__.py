"""8-bit linear layers in an exported file, for CPUs."""
