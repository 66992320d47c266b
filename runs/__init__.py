"""`tandem train`: a whole RL run as a client of the service, with rollouts, training jobs and evaluation."""
