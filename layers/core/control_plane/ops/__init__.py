"""Operations for people and their tools: migrations, status and health, timelines, dead letters, maintenance."""
