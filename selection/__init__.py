"""Embeddings in, the indices worth annotating out."""
