"""Floor 0: the vocabulary. Import from the modules; `report` needs no torch, so nothing is imported here."""
