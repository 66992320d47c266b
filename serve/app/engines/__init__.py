"""Engine replicas: their deployment, their addresses and health, and the ways to call them."""
