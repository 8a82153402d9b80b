"""The backend in other people's hands. Each module needs an extra of its own; the core needs none of them."""
