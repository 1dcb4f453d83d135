"""The parity report as JSON and HTML, and its comparison with an earlier one."""
