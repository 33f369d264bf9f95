"""How fast graphs run here: latency and throughput over threads and batch sizes, and where the time goes."""
