"""Loss, optimizer and step; recipes of stages, and the loop that trains them with checkpoints."""
