"""Benchmarks: real peers, side by side in one run, on real data that the benchmark makes itself."""
