"""Serving on a GPU: the one folder of the runtime that may import torch, Triton, TensorRT or PyCUDA."""
