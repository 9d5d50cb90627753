"""A client of the control plane's API: where a deployment is and who asks (``profiles``), and requests (``client``)."""
