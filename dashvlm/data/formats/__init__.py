"""One importer a dataset: a function from a folder and options to manifest rows."""
