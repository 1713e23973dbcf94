"""Golden probes: their vectors are compared with references, judged and reported."""
