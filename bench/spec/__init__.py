"""What a sweep asks for: checked configuration, axes, cells and their ids, jobs. Pure, no torch."""
