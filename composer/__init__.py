"""Concepts into a diffusers pipeline, and out of it again, exactly."""
