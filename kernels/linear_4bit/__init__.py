"""y = x W.T + b, and LoRA on it, where W is stored in four bits and never held in full."""
