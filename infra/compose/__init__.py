"""What docker-compose.yml needs besides images: secrets, and the steps before the first start."""
