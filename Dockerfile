# The service with its weights. Layers go from what changes least to what changes most: a change of the code copies
# two small folders and rebuilds in seconds.

FROM python:3.11-slim-bookworm AS packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 UV_NO_CACHE=1 UV_LINK_MODE=copy
COPY requirements/uv.txt requirements/serve.txt /requirements/
RUN python -m venv /opt/uv \
    && /opt/uv/bin/pip install --require-hashes -r /requirements/uv.txt
RUN python -m venv --without-pip /opt/venv \
    && /opt/uv/bin/uv pip install --python /opt/venv/bin/python --require-hashes -r /requirements/serve.txt

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home tenfold
COPY --from=packages /opt/venv /opt/venv
WORKDIR /srv/tenfold
COPY weights weights
COPY model model
COPY app app
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TENFOLD_HOST=0.0.0.0 \
    TENFOLD_PORT=8000
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"TENFOLD_PORT\"]}/readyz', timeout=2)"]
CMD ["python", "-m", "app"]
