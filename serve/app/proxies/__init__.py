"""What proxy_middleware.py loads into Ray Serve's proxies, and the connections from there to engines and to the API."""
