"""Response headers that say which policy version and which engine replica answered."""

VERSION_HEADER, DIGEST_HEADER, REPLICA_HEADER = "x-policy-version", "x-policy-digest", "x-engine-replica"
