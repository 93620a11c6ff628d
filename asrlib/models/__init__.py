"""Weights on disk, in every runtime's format: fetched, converted, checked."""
