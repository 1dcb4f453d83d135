"""A comparison's result as JSON and HTML, and against an earlier report."""
