"""Models and their policy versions: where each comes from, what keeps it, and which ones are surplus."""
