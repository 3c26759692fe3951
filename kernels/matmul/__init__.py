"""Products of stacks of matrices."""
