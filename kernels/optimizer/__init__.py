"""The AdamW update and the norm that clipping needs."""
