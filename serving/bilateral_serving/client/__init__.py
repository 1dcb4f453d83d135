"""gRPC clients of a running server, synchronous and asyncio; they need neither torch nor onnx."""

from bilateral_serving.client.aio import AsyncClient as AsyncClient
from bilateral_serving.client.sync import Client as Client
