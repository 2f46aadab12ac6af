"""Why an image scores as it does: functions over a detector."""
