"""Dependencies that read request bodies, and the sentences for their problems."""
