"""Experts: small plugins beside a frozen backbone."""
