"""Tools: typed functions that a model may call, and what stands between the model and them."""
