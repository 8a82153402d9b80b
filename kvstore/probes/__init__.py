"""What a machine offers the store and the transports: a probe looks at one thing and says what to do."""
