"""Where learners run: the GPUs and nodes of a group, and the memory that it may use there."""
