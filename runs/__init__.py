"""A whole RL run, seen from its client: rollouts, training jobs, evaluation. What `tandem train` does."""
