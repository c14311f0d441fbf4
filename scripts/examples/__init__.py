"""Examples of what a GRU does after it is ported, each a file to copy from: `scripts/example` lists them."""
