"""One gradient step of a learner: its size, rate and optimizer, what it measures, and what can go wrong in it."""
