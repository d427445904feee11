"""The engine whose model lives on a server that speaks the Tinker API."""
