"""The parts that both benchmarks use."""
