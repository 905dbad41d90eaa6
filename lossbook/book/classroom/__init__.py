"""The classroom: the notebooks that students get, and the points for what they hand in."""
