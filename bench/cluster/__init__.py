"""The launchers of cells: local processes, SLURM through submitit, claims, the copy of the code."""
