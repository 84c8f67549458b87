"""What every package stands on; private."""
