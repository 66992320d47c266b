"""The parts that run on Ray: learners, the vLLM engine, and the coordinator that runs jobs on them."""
