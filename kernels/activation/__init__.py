"""GELU (exact and tanh), SiLU, SwiGLU."""
