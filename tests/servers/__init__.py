"""Real servers for tests: Redis in its three forms, a load balancer, and the certificates they show.

Each is a child process on loopback that ends with the test, also one that dies: the kernel ends it then.
"""
