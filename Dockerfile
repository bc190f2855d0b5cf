# The service with its weights: on the CPU with OpenVINO, or on an NVIDIA GPU with PyTorch (`--target gpu`).
# Layers that change rarely come first, so a change of the code rebuilds in seconds.
# Bytecode is compiled at build time because the container's file system is read-only.
# The GPU stages come after the cpu stage because a builder without BuildKit builds every stage before its target.

FROM python:3.11-slim-bookworm AS uv
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 UV_NO_CACHE=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
COPY requirements/uv.txt /requirements/
RUN python -m venv /opt/uv \
    && /opt/uv/bin/pip install --require-hashes -r /requirements/uv.txt \
    && python -m venv --without-pip /opt/venv \
    && printf '#!/opt/venv/bin/python\nfrom app.cli.main import main\nmain()\n' > /opt/venv/bin/tenfold \
    && chmod 755 /opt/venv/bin/tenfold

FROM uv AS cpu-packages
COPY requirements/serve.txt /requirements/
# openvino-telemetry sends usage data to Google Analytics at every start; OpenVINO works without it.
# Removing OpenVINO's plugins for other devices and its frontends for other formats saves 80 MB. The tests of packages,
# headers, and the cache for GPUs have another 30 MB.
RUN /opt/uv/bin/uv pip install --python /opt/venv/bin/python --require-hashes -r /requirements/serve.txt \
    && /opt/uv/bin/uv pip uninstall --python /opt/venv/bin/python openvino-telemetry \
    && cd /opt/venv/lib/python3.11/site-packages \
    && find . -type d -name tests -prune -exec rm -r {} + \
    && rm -r openvino/include \
    && cd openvino/libs \
    && rm -f libopenvino_intel_gpu_plugin.so libopenvino_intel_npu_*.so libopenvino_onnx_* libopenvino_paddle_* \
        libopenvino_pytorch_* libopenvino_tensorflow_* libopenvino_jax_* libopenvino_gguf_* cache.json

FROM python:3.11-slim-bookworm AS service
RUN useradd --system --uid 10001 --no-create-home tenfold
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONPATH=/srv/tenfold \
    TENFOLD_HOST=0.0.0.0 \
    TENFOLD_PORT=8000
WORKDIR /srv/tenfold
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-m", "app.process.healthcheck"]
# Compose and Helm may pass an empty TENFOLD_HOST, which means the default of the service: 127.0.0.1.
CMD ["sh", "-c", "TENFOLD_HOST=${TENFOLD_HOST:-0.0.0.0} exec python -m app"]

FROM service AS cpu
COPY --from=cpu-packages /opt/venv /opt/venv
COPY weights weights
COPY model model
COPY app app
RUN python -m compileall -q model app && tenfold classify --help > /dev/null && python -c "import app.process.server, openvino"
USER 10001

FROM uv AS gpu-packages
COPY requirements/serve-torch.txt /requirements/
RUN /opt/uv/bin/uv pip install --python /opt/venv/bin/python --require-hashes -r /requirements/serve-torch.txt

FROM service AS gpu
COPY --from=gpu-packages /opt/venv /opt/venv
COPY weights weights
COPY model model
COPY app app
RUN python -m compileall -q model app && tenfold classify --help > /dev/null && python -c "import app.process.server, torch"
USER 10001

FROM cpu
