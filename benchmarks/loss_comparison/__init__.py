"""The parts of benchmarks/compare_losses.py: runs that differ only in their loss, and their evaluation."""
