"""The operator on a GPU: an OpenAI Triton kernel, launched from PyTorch or compiled ahead of time.

Importing this package imports neither torch nor triton; its modules do.
"""
