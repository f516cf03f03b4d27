"""Methods that only restore: solvers of inverse problems and trained baselines. Each is a `methods.base.Restorer`."""
