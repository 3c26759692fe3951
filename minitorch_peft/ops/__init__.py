"""Differentiable operations on Tensors, one file a family; ``minitorch_peft.functional`` has them all."""
