"""The AI Control Plane: events stored with the promise to deliver them, and the promise kept."""
