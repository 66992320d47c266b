"""N learner processes that act as one learner."""
