"""The database's roles: one per kind of function, and the owner."""

OWNER = "acp_owner"
INGEST = "acp_ingest"
RELAY = "acp_relay"
CONSUME = "acp_consume"
READER = "acp_reader"
MAINTAIN = "acp_maintain"
DETECT = "acp_detect"
DECIDE = "acp_decide"
AGENT = "acp_agent"
GATEKEEPER = "acp_gatekeeper"
ACTION = "acp_action"
COMMAND = "acp_command"

SECRETS = {
    "DatabaseOwnerSecretArn": OWNER,
    "IngestDatabaseSecretArn": INGEST,
    "RelayDatabaseSecretArn": RELAY,
    "ConsumeDatabaseSecretArn": CONSUME,
    "ReadDatabaseSecretArn": READER,
    "MaintainDatabaseSecretArn": MAINTAIN,
    "DetectDatabaseSecretArn": DETECT,
    "DecideDatabaseSecretArn": DECIDE,
    "AgentDatabaseSecretArn": AGENT,
    "GatekeeperDatabaseSecretArn": GATEKEEPER,
    "ActionDatabaseSecretArn": ACTION,
    "CommandDatabaseSecretArn": COMMAND,
}
"""For each parameter of the template that is a secret, the role whose URL the secret holds."""

SEE_OTHERS_SESSIONS = (OWNER, READER, MAINTAIN)
"""The roles that may see others' sessions, to find who holds back the transaction horizon, and since when."""
