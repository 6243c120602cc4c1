"""Scorers: from histories to a score of every item."""
