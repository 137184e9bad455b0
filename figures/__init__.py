"""Figures drawn from stored records alone: no torch, no model."""
