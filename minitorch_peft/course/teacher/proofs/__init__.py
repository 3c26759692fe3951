"""Wrong and right solutions for every task: what the checks must tell apart."""
