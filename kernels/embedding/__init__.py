"""Rows of a table by id, and the scatter-add that is its gradient."""
