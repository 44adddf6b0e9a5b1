# Two images. Target scoring: score worker, beat, listener and every command that does not train, without TensorFlow.
# Target training, the default: the train worker, and all of it.
FROM python:3.12-slim AS scoring-dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/pgoutlier
WORKDIR /build
# The dependencies come first: their layers are built again only when a version changes.
COPY requirements/scoring.txt requirements/
RUN /opt/pgoutlier/bin/pip install --require-hashes -r requirements/scoring.txt

FROM scoring-dependencies AS training-dependencies
COPY requirements/runtime.txt requirements/
RUN /opt/pgoutlier/bin/pip install --require-hashes -r requirements/runtime.txt

FROM scoring-dependencies AS wheel
COPY pyproject.toml setup.py README.md LICENSE ./
COPY pgoutlier pgoutlier
COPY detector detector
COPY db db
COPY models_store models_store
COPY worker worker
COPY migrations migrations
RUN /opt/pgoutlier/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM scoring-dependencies AS scoring-environment
COPY --from=wheel /wheels /wheels
RUN /opt/pgoutlier/bin/pip install --no-deps --no-index /wheels/*.whl

FROM training-dependencies AS training-environment
COPY --from=wheel /wheels /wheels
RUN /opt/pgoutlier/bin/pip install --no-deps --no-index /wheels/*.whl

FROM python:3.12-slim AS base
LABEL org.opencontainers.image.title="pgoutlier" \
      org.opencontainers.image.description="Anomaly scoring inside PostgreSQL" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin pgoutlier
# /tmp is the one folder that the processes write to; it may be a tmpfs.
ENV PATH=/opt/pgoutlier/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PGOUTLIER_LOG_FORMAT=json
WORKDIR /tmp
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s --retries=3 \
    CMD ["python", "/opt/pgoutlier/health.py"]
CMD ["pgoutlier", "--help"]

FROM base AS scoring
COPY --from=scoring-environment /opt/pgoutlier /opt/pgoutlier
COPY container/health.py /opt/pgoutlier/health.py

FROM base AS training
COPY --from=training-environment /opt/pgoutlier /opt/pgoutlier
COPY container/health.py /opt/pgoutlier/health.py
