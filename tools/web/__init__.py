"""Pages and search servers: requests that are bounded in time and size, fences of addresses, readable text."""
