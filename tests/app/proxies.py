"""nginx and HAProxy in front of a service: a path prefix, and TLS that ends there."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PREFIX = "/ml/cats"

_NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/certificate.pem;
        ssl_certificate_key {folder}/certificate.pem;
        client_max_body_size 20m;
        location {prefix}/ {{ proxy_pass http://127.0.0.1:{service}{rest}; }}
    }}
}}
"""
_HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend front
    bind 127.0.0.1:{port} ssl crt {folder}/certificate.pem
    {rule}
    default_backend service
backend service
    server one 127.0.0.1:{service}
"""
REPLACE_PATH = rf"http-request replace-path {PREFIX}/(.*) /\1"
REDIRECT = f"http-request redirect location {PREFIX}/ code 308 if {{ path {PREFIX} }}"
"""Rules of HAProxy that remove the prefix. nginx redirects by itself."""


@contextlib.contextmanager
def proxied(program: str, service: int, folder: Path, *, keeps: bool) -> Iterator[str]:
    """A proxy in front of a service; skips the test if the program is not installed.

    Args:
        program: "nginx" or "haproxy".
        service: its port.
        folder: for the files of the proxy.
        keeps: whether it keeps the prefix in the paths.

    Yields:
        The URL below the prefix, with a certificate that nobody trusts.
    """
    found = shutil.which(program)
    if not found or not shutil.which("openssl"):
        pytest.skip(f"no {program} or no openssl: install Debian's packages of these names")
    _make_certificate(folder / "certificate.pem")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = folder / "configuration"
    if program == "nginx":
        rest = "" if keeps else "/"
        text = _NGINX.format(folder=folder, port=port, service=service, prefix=PREFIX, rest=rest)
        command = [found, "-p", str(folder), "-e", "stderr", "-c", str(file)]
    else:
        rule = "" if keeps else f"{REDIRECT}\n    {REPLACE_PATH}"
        text = _HAPROXY.format(folder=folder, port=port, service=service, rule=rule)
        command = [found, "-db", "-f", str(file)]
    file.write_text(text, encoding="utf-8")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_listening(process, port, folder / "log")
        yield f"https://127.0.0.1:{port}{PREFIX}/"
    finally:
        process.kill()
        process.wait(20)


def _make_certificate(path: Path) -> None:
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        ["openssl", "req", "-x509", "-days", "1", *key, "-keyout", path, "-out", f"{path}.part", *subject],
        check=True,
        capture_output=True,
    )
    with path.open("ab") as file:
        file.write(Path(f"{path}.part").read_bytes())


def _wait_listening(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    ends = time.monotonic() + 20
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text(encoding="utf-8")
        assert time.monotonic() < ends, f"the proxy does not listen: {log.read_text(encoding='utf-8')}"
        time.sleep(0.02)
