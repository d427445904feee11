"""Training documents from unlabelled text: readers, entities, neighbours, masking. No torch in here."""
