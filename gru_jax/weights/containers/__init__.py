"""Files of named tensors. Each kind has one module, whose `open_*` returns the tensors without reading them yet."""
