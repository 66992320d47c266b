"""The `tandem` command, and the lifecycle of the service that it starts."""
