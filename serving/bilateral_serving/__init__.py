"""The model repository, the server and the client: an exported model as a gRPC service.

Importing this package is cheap; `bilateral_serving.client` needs neither torch nor onnx.
"""
