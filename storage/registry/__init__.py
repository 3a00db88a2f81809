"""What stands behind the registry of artifacts: versions, records, signatures, retention."""
