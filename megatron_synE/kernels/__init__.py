"""Fused kernels of the native CUDA path, each beside the plain torch function that says what it computes."""
