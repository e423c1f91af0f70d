"""Tests of the benchmark itself: its figures and its pages."""
