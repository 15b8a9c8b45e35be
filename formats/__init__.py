"""Adapter files to one internal form and back: bytes, names, dtypes and shapes, without torch."""
