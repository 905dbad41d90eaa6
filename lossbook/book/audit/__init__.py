"""Audits of a user's own files: what the notebooks of `notebooks/audits` compute, and the commands that run them."""
