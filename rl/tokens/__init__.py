"""From chat messages and choices to exact token sequences."""
