"""The agreement of the HTTP endpoint and its client: paths, headers, limits. Neither imports the other.

    POST /v1/{name}                  body: a message; Ilcp-Handoff-Id optional     201 kept, 200 was there; JSON
    POST /v1/{name}/receive          ?lease_s= &wait_s=                            200 a message and its lease, 204 none
    POST /v1/{name}/ack              Ilcp-Lease                                    204, 409 the lease has ended
    POST /v1/{name}/nack             Ilcp-Lease, ?delay_s=                         204, 409
    POST /v1/{name}/extend           Ilcp-Lease, ?lease_s=                         204, 409; held so long from now on
    PUT  /v1/{name}/capabilities     body: JSON                                    204
    GET  /v1/{name}/capabilities                                                   200 JSON, 404 told nothing
    GET  /health                                                                   200; needs no token
    GET  /metrics                                                                  200, Prometheus' text

A request needs ``Authorization: Bearer TOKEN`` where the endpoint has a token. Errors are JSON, ``{"error": …}``: 400
malformed, 401 no or another token, 408 a body that does not come, 411 no length or a transfer-encoding, 413 too large,
415 another media type, 429 no room now (with ``Retry-After``), 503 the spool is damaged or locked.
"""

__all__ = [
    "ATTEMPT_HEADER",
    "ID_HEADER",
    "LEASE_FOR_HEADER",
    "LEASE_HEADER",
    "MAX_WAIT_S",
    "PREFIX",
]

PREFIX = "/v1"
ID_HEADER = "ilcp-handoff-id"
LEASE_HEADER = "ilcp-lease"
LEASE_FOR_HEADER = "ilcp-lease-s"
ATTEMPT_HEADER = "ilcp-attempt"
MAX_WAIT_S = 20.0  # one request; proxies cut off what is silent for 30 to 60 s
