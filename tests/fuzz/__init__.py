"""Random graphs: a strategy that grows them, builders, and the check that they are inferred rightly."""
