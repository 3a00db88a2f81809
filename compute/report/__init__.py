"""What is told of a run: its findings, their examples, what became of earlier concepts."""
