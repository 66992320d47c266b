"""All durable state of the service except blobs and checkpoint files."""
