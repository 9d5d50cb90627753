"""Models behind agents: what one is asked, how providers are spoken to, and what it may cost."""
