"""Whom a verdict is told: webhooks, brokers, PLCs, files."""
