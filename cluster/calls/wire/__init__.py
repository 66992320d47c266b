"""The wire of the Tinker API: protobuf messages and their conversion."""
