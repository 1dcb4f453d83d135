"""Checks that need an NVIDIA GPU: the plugin without TensorRT, and the TensorRT runner."""
