"""What benchmarks/cpu_vs_llamacpp.py is made of: engines in processes, their bytes, bursts and verdicts."""
