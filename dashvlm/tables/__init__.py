"""Tables as other tools write them: their records and what stands in their cells."""
