"""What is shipped: its packages, their licences, and what is known to be wrong with them."""
