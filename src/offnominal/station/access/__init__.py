"""Who may do what: accounts, sessions, tokens, the audit log."""
