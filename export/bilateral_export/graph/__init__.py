"""From a checkpoint to the canonical ONNX file: one custom node per attention, its body inside."""
