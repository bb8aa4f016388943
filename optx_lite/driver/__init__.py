"""Run a solver to its end, differentiate what came out, batches, callbacks."""
