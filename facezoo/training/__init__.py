"""Parts that every training shares: the loop, optimizers, processes and the record of a run."""
