"""Linear layers with what follows them: bias, GELU, gate and residual; see README.md."""
