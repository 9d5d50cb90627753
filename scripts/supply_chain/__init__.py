"""What is shipped: its packages, their licences, and their known vulnerabilities."""
