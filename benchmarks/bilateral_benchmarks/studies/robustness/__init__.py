"""Accuracy under FGSM and PGD: of the torch model, of ONNX Runtime, and of what is served."""
