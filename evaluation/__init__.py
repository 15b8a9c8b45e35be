"""Measures of what a concept does: identity, prompt following, and the demonstration built on them."""
