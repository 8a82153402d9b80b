"""The backend as an endpoint that speaks OpenAI's protocol, so that an agent written elsewhere can be a
rollout.

config, errors    what can be set; what a client is told when something is wrong
wire, told        what a request says, and what a context has heard
answer            what a client reads of sampled tokens, at once or as they come
session(s)        a trajectory of an agent that runs elsewhere
served_model      one request, from its limits to its turn on the engines
gate, app         bearer token, limits, disconnects; routes and answers
endpoint, job     on a port: `backend.serve()`, `python -m rollout job=serve`
"""
