"""Files that are copied into a model repository and run inside Triton's Python backend."""
