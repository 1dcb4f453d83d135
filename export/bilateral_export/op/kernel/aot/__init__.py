"""The kernels compiled ahead of time, without a GPU, for the TensorRT plugin."""
