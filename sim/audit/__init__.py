"""``idiolect audit``: record what devices share, protect it, attack it, report.

Knows runs; the attackers are in fl.privacy.audit.
"""
