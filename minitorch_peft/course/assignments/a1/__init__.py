"""Assignment A1: backward rules by hand, the engine that runs them, and the checker that tells right from wrong."""
