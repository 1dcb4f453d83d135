"""Rewrites of the canonical ONNX file for one runtime; each passes a gate before it is used."""
