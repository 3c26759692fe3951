"""Differentiable operations on Tensors, one file a family; ``minitorch_peft.functional`` gives them torch's names."""
