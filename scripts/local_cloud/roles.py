"""The database's roles: one per kind of function, and the owner."""

OWNER = "acp_owner"
INGEST = "acp_ingest"
RELAY = "acp_relay"
CONSUME = "acp_consume"
READER = "acp_reader"
MAINTAIN = "acp_maintain"

SECRETS = {
    "DatabaseOwnerSecretArn": OWNER,
    "IngestDatabaseSecretArn": INGEST,
    "RelayDatabaseSecretArn": RELAY,
    "ConsumeDatabaseSecretArn": CONSUME,
    "ReadDatabaseSecretArn": READER,
    "MaintainDatabaseSecretArn": MAINTAIN,
}
"""For each parameter of the template that is a secret, the role whose URL the secret holds."""

SEE_OTHERS_SESSIONS = (OWNER, READER, MAINTAIN)
"""The roles that may see others' sessions, to find who holds back the transaction horizon, and since when."""
