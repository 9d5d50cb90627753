"""Traces: spans made of what is recorded, as OpenTelemetry's OTLP; nothing here runs while an event is on its way."""
