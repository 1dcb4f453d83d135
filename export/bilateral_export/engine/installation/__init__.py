"""The TensorRT, the plugin library and the GPUs of this machine."""
