"""Tests of the benchmark itself: what it measures and how it says so."""
