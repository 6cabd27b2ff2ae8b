"""What the reports on engines share: what identifies them, what was exercised, and where an engine departs most."""
