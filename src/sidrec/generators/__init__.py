"""Generators: from histories to the next semantic ID."""
