#!/bin/bash

# Parameters
#SBATCH --array=0-2%3
#SBATCH --cpus-per-task=8
#SBATCH --error=/store/jobs/RUN/logs/%A_%a_0_log.err
#SBATCH --gpus-per-node=8
#SBATCH --job-name=bench-corruptions
#SBATCH --mem=327680MB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/store/jobs/RUN/logs/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=240
#SBATCH --wckey=submitit

# setup
export PYTHONPATH=/store/code/abc:/home/me
export HF_HUB_OFFLINE=1
export NOTE='two words'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /store/jobs/RUN/logs/%A_%a_%t_log.out --error /store/jobs/RUN/logs/%A_%a_%t_log.err --cpus-per-task=8 --export=ALL /env/bin/python -u -m submitit.core._submit /store/jobs/RUN/logs
