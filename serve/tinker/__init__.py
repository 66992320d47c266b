"""The Tinker API: training loops of the user's own, over the same learners and engines."""
