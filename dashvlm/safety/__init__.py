"""Files, texts, secrets and signals that are not ours: read within bounds, shown harmless, kept out, obeyed."""
