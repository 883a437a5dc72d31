"""What is done about an alarm: skip, lower the rate, roll back, stop."""
