"""Desired state against observed: one pass, the loop, pins."""
