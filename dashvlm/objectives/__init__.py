"""What is minimised: one Lightning module an objective."""
