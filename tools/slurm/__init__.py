"""Training jobs on a Slurm cluster: the job script, what it decides, what is checked before it trains."""
