"""Quantized layers, and the surgery that puts them into a model and takes them out again."""
