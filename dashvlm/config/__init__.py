"""The schema of a configuration: its rules, its identity, what a command line may say. The only room with Hydra."""
