"""Conceptry: the package manager for learned visual concepts."""

__version__ = "0.1.0"
