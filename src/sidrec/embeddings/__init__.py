"""Item vectors: text, collaborative, precomputed, and their fusion."""
