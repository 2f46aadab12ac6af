"""What programs talk to: JSON under ``/v1``."""
