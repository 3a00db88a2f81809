"""What a run reads: documents, pictures and the model beside them, looked at once."""
