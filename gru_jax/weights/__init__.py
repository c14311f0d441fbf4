"""Trained weights, in and out.

`containers` opens files. `pytorch`, `onnx`, `keras`, `jax` and `own` find the GRUs in them, and write ours as theirs.
"""
