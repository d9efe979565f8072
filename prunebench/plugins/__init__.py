"""Code of users: files and packages, with the hash of all their helpers, and entry points of installed packages."""
