"""Retrieval: generated and dense candidates together."""
