"""Files to dicts of arrays and back: safetensors, JSON, Hugging Face directories."""
