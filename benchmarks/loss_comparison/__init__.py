"""What benchmarks/compare_losses.py is made of: runs that differ in their loss alone, and what they say."""
