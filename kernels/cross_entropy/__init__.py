"""Cross-entropy of logits against class ids, row by row."""
