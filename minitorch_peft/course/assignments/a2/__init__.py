"""Assignment A2: a GPT and fine-tuning it."""
