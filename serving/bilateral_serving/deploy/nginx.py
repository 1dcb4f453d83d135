"""nginx before several servers: gRPC balanced, and sent on where a server is gone."""

from __future__ import annotations

from collections.abc import Sequence

_CONFIGURATION = """\
worker_processes auto;
pid {scratch}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {scratch}/body;
    proxy_temp_path {scratch}/proxy;
    fastcgi_temp_path {scratch}/fastcgi;
    uwsgi_temp_path {scratch}/uwsgi;
    scgi_temp_path {scratch}/scgi;
    upstream servers {{
        least_conn;
{servers}
        keepalive 64;
    }}
    server {{
        listen {listen} http2;
        client_max_body_size 1g;
        http2_max_concurrent_streams 1024;
        # A client keeps its connection for days.
        keepalive_requests 1000000000;
        location / {{
            grpc_pass grpc://servers;
            grpc_socket_keepalive on;
            grpc_connect_timeout 2s;
            # As long as the slowest answer.
            grpc_read_timeout 300s;
            grpc_send_timeout 300s;
            # Inference changes nothing, so a request may be sent again.
            grpc_next_upstream error timeout http_502 http_503 http_504 non_idempotent;
            grpc_next_upstream_tries 3;
        }}
    }}
}}
"""


def nginx_configuration(listen: str, servers: Sequence[str], scratch: str = "/tmp") -> str:
    """Return nginx.conf.

    Args:
        listen: Where callers connect: "host:port", or a port.
        servers: The servers' gRPC addresses, "host:port" each.
        scratch: A directory that nginx may write to.
    """
    lines = (f"        server {server} max_fails=1 fail_timeout=2s;" for server in servers)
    return _CONFIGURATION.format(listen=listen, servers="\n".join(lines), scratch=scratch)
