"""What lies behind a number: shift, spurious features, calibration, agreement; one diagnosis per file."""
