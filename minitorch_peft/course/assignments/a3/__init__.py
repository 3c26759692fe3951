"""Assignment A3: LoRA, from its start to a choice of targets and rank."""
