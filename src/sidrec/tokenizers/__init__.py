"""Semantic IDs: from item vectors to short codes."""
