"""vLLM as sampler: in this process or as a server. The in-process PyTorch engine scores and learns beside it."""
