"""Looking for damage in a store, and mending it."""
