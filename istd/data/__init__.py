"""Data: folder layouts, point labels, synthetic scenes, training crops."""
