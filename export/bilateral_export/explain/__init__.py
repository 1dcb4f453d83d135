"""Where a model looks, and what each of its two kernels contributes: see README.md."""
