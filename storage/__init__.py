"""What lasts: activation and code stores, concept artifacts, their registry and exports."""
