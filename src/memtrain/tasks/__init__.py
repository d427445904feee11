"""Episodes and their rewards, one task a file. No torch in here."""
