"""The memory of a GPU: what the parts of a service need, and how learners and engines divide it."""
