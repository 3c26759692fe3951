"""Scaled dot-product attention with grouped heads and more keys than queries."""
