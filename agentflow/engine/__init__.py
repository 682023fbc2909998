"""What makes functions durable: replay, suspension, claims, leases."""
