"""The LoRA layer with dropout on its low-rank path; the mask is drawn again from a counter, never stored."""
