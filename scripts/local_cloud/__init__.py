"""The local cloud: brings up PostgreSQL, an emulator of AWS and the stack on this machine, and speaks with them."""
