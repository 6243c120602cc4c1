"""Decoding: from a generator and the catalogue to items that exist."""
