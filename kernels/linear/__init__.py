"""y = x W.T + b."""
