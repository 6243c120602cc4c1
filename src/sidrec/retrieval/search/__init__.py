"""Queries to items: one searcher a file, and their fusion."""
