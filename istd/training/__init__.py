"""Training: presets, and the assembly of data, method and trainer."""
