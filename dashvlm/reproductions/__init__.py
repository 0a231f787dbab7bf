"""The five projects' published tables: studies, their numbers computed again, their odd definitions."""
