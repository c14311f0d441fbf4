"""Trained weights: GRUs read from the files of many frameworks, and written back.

`checkpoint` opens any file. `containers` reads its tensors, and `pytorch`, `onnx`, `keras`, `jax` and `own` find the
GRUs in it. `saving` writes gru_jax's own files; the four folders write parameters as their frameworks store them.
"""
