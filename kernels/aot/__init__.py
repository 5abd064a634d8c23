"""Triton kernels compiled ahead of time: what is compiled for which GPU, how, and what the cubins say of themselves."""
