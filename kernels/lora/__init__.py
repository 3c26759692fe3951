"""A frozen linear layer and its low-rank update in one pass."""
