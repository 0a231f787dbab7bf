"""What tells the label without a look at the pictures: probes of data sets and of rationales."""
