"""Assignment A5: adapters, prompts, prefixes, BitFit, gates, and what they have in common."""
