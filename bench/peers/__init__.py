"""Those who are measured. Each runs in a process of its own, so that thread pools do not fight."""
