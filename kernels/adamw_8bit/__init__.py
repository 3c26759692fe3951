"""AdamW whose two moments are kept in eight bits."""
