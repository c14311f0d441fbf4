"""Files of named tensors, one kind a module: `open_*` gives the tensors, not read yet."""
