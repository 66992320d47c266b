"""Request bodies: received, unpacked, spooled to disk. Knows no store."""
