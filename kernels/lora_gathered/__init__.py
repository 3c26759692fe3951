"""A LoRA layer where each row of the batch has its own adapter: many users in one batch."""
