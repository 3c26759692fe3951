"""Experiments: adapting one base by several methods, and measuring what each costs, learns and forgets."""
