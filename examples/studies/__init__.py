"""Studies: each answers one question with measurements, and a page of the documentation shows its tables."""
