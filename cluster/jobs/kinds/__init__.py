"""The kinds of training jobs: how payload and options become gradient steps."""
