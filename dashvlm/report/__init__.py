"""Tables and plots of runs. Reads files; loads no torch."""
