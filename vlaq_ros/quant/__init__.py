"""The maths of one tensor: schemes, affine quantization, packing. No models, no files."""
