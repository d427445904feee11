"""Commands that have grown a file of their own, and the options that all commands share. No logic here."""
