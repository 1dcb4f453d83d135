"""Bisection: the search for the first node of a graph whose error exceeds its budget."""
