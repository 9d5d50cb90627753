"""What people and their tools ask of the control plane: migrate, how is it, what became of this event."""
