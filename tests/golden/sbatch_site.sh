#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --array=0-99%64
#SBATCH --constraint=a100
#SBATCH --cpus-per-task=8
#SBATCH --error=/store/jobs/RUN/logs/%A_%a_0_log.err
#SBATCH --gpus-per-node=1
#SBATCH --job-name=bench-corruptions
#SBATCH --mail-type=FAIL
#SBATCH --mem=40960MB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/store/jobs/RUN/logs/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=240
#SBATCH --wckey=submitit

# setup
module load cuda
export PYTHONPATH=/store/code/abc:/home/me
export HF_HUB_OFFLINE=1
export NOTE='two words'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /store/jobs/RUN/logs/%A_%a_%t_log.out --error /store/jobs/RUN/logs/%A_%a_%t_log.err --cpus-per-task=8 --export=ALL /env/bin/python -u -m submitit.core._submit /store/jobs/RUN/logs
