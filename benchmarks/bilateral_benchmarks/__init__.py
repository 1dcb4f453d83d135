"""Latency and throughput of runners and of served models: load, statistics, reports."""
