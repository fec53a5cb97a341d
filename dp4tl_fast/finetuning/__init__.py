"""Train on the target (``run``): linear probe, full finetuning and kNN (``probes``), their accuracy by class and group."""
