"""Labels from a teacher: asking, keeping, checking them for what gives the class away. Loads no torch."""
