"""The care of a store: looking for damage in it, and mending what is damaged."""
