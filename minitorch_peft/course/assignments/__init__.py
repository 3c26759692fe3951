"""One folder an assignment: the manifest, its checks, and the probes that run beside a student's code."""
