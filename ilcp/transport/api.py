"""The agreement of the HTTP ingress and its client: paths, headers, limits. Neither imports the other.

    POST /v1/{name}                body: a message; Ilcp-Handoff-Id          202 kept, 200 was there, 409 another was
    GET  /v1/{name}/capabilities                                             200 JSON, 404 told nothing
    HEAD /v1/blobs/{digest}                                                  200, Upload-Offset: how much is there
    PUT  /v1/blobs/{digest}        body: a blob, or its end; Content-Range   201 kept, 200 was there
    GET  /v1                                                                 200 JSON
    GET  /health                                                             200; needs no token
    GET  /metrics                                                            200, Prometheus' text

``name`` is the one receiver's that the ingress is for; any other is a 404. A request needs ``Authorization: Bearer
TOKEN``, a ``Host`` that is an IP address, localhost or one that the ingress was told, and no ``Origin``, which browsers
send. A sealed message needs no id beside its own. A blob is for any message to the receiver; ``digest`` is its 64 hex
digits, and a put that was interrupted goes on at ``Upload-Offset`` with ``Content-Range: bytes FIRST-LAST/ALL``. Errors
are JSON, ``{"error": …}``: 400 malformed, or no ilcp message, 401 no or another token, 403 a host or an origin, 408 a
body that does not come, 411 no length or a transfer-encoding, 413 too large, 415 another media type, 416 another part
than the next, 422 a blob that is missing or is not what its digest says, 429 no room now (with ``Retry-After``), 503
the spool is damaged or locked. A path has one spelling; any other is a 404. Nothing is received, acknowledged or
published over HTTP: the receiver takes its messages from the spool.
"""

__all__ = ["BLOBS", "BLOB_TYPE", "ID_HEADER", "OFFSET_HEADER", "PREFIX"]

PREFIX = "/v1"
BLOBS = f"{PREFIX}/blobs"
BLOB_TYPE = "application/vnd.ilcp.blob"
OFFSET_HEADER = "upload-offset"
ID_HEADER = "ilcp-handoff-id"
