"""What runs on Ray: learners, the vLLM engine, and the coordinator that leads a job through them."""
