"""Machinery that every script uses; no algorithm lives here."""
