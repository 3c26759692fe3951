"""Tensor, Function, backward, gradcheck."""
