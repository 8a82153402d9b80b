"""What the paper does not tell, by the same simulations: other models, rates, plans and traces."""
