"""Texts of answers, pure: yes and no, letters, reasoning tags, scene parameters, navigation fields."""
