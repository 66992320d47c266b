"""Training by a loop of the client's own: its calls, run in their order on the learners of a base model."""
