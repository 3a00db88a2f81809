"""The concept graph, and what has become of its concepts from version to version."""
