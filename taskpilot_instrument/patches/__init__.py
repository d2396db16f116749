"""One file for each patched library: where to patch, and what reads its requests and responses."""
