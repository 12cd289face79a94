"""Benchmarks, each run as a module: `python -m experiments.benchmarks.dense`."""
