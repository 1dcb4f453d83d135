"""TensorRT plans: built from an ONNX file, with a manifest, checked before use."""
