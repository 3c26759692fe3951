"""Random numbers from a counter: any one of them can be drawn again by its place alone."""
