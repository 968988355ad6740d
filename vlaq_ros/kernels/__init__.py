"""Multiplication by a packed weight: the definition, then one fast kernel per file."""
