"""Where cells run: local processes, SLURM through submitit, claims, the copy of the code."""
