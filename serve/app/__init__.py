"""The Ray Serve deployments and their health."""
