"""What is asked and how an answer is read: prompts, targets, parsing. Knows no model."""
