"""Every figure that the README claims comes from a command here."""
