"""Runnable scripts: published tables reproduced, and benchmarks. Not part of the installed packages."""
