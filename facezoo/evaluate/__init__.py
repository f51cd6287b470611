"""Evaluation of checkpoints: metrics, probes, leakage, protocols and the benchmark."""
