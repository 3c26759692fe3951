"""Corpora, tokenizer, batches."""
