"""A fleet of real systemd hosts on one machine, the demo that computes on it, and the tests that break it."""
