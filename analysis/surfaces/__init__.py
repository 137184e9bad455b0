"""Losses along directions: lines and planes through a checkpoint, what they predict, and how they are spelled."""
