"""From a sweep's YAML to work: checked configuration, axes, cells and their ids, jobs. Pure, no torch."""
